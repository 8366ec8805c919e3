"""Tiny saved models, data files, and the program in this process."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import FACTS, WINDOWS, Files, Result, squad
from sweep_runs import Program, config_of, sweep_options
from tiny import model_for, tokenizer
from two_stage_runs import STAGES

from hf_distill import DistillationTrainer
from hf_distill.cli.main import main


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("project")
    for name, facts in (("train", FACTS), ("validation", FACTS[:4])):
        (folder / f"{name}.json").write_text(json.dumps(squad(facts)))
    models = {}
    for seed, (role, layers) in enumerate(
        {"teacher": 2, "student_alone": 1, "student_distilled": 1}.items()
    ):
        path = folder / "models" / role
        model_for("question-answering", seed=seed, layers=layers).save_pretrained(path)
        tokenizer().save_pretrained(path)
        models[role] = str(path)
    return Files(folder, str(folder / "train.json"), str(folder / "validation.json"), models)


@pytest.fixture
def program(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """``hf-distill`` in this process."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("HF_DISTILL_DEBUG", raising=False)

    def call(*argv: Any) -> Result:
        capfd.readouterr()
        try:
            status = main([str(word) for word in argv])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return Result(status, *capfd.readouterr())

    return call


@pytest.fixture
def train_options(files: Files, tmp_path: Path) -> list[str]:
    """A distillation run of a second; later options override these."""
    return [
        "train",
        *("--task", "question-answering"),
        *("--student_model", files.models["student_alone"]),
        *("--teacher_model", files.models["teacher"]),
        *("--train_file", files.train),
        *("--validation_file", files.validation),
        *("--output_dir", str(tmp_path / "out")),
        *("--max_steps", "4", "--save_steps", "2", "--learning_rate", "1e-3"),
        *("--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu"),
        *WINDOWS,
    ]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student without a head, narrower than its teacher, with dropout."""
    folder = tmp_path_factory.mktemp("encoder")
    model = model_for("question-answering", seed=5, layers=1, width=8, hidden_dropout_prob=0.1)
    model.bert.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def two_stages(train_options: list[str], encoder: str) -> list[str]:
    """A run of 4 + 4 steps with a checkpoint every second step."""
    losses = ["--attention_loss", "scores"]
    return [*train_options, *losses, *STAGES, "--student_model", encoder]


@pytest.fixture(scope="session")
def whole(
    tmp_path_factory: pytest.TempPathFactory, files: Files, encoder: str
) -> Callable[[Callable[..., Result], list[str]], Path]:
    """The folder of a run that nothing interrupted; run once."""
    folder = tmp_path_factory.mktemp("whole") / "out"

    def run(program: Callable[..., Result], options: list[str]) -> Path:
        if not folder.exists():
            result = program(*options, "--output_dir", folder)
            assert result.status == 0, result.stderr
        return folder

    return run


@pytest.fixture
def no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of these trainings goes into looking for garbage."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


@pytest.fixture
def options(files: Files, tmp_path: Path) -> dict[str, Any]:
    """Of a sweep."""
    return sweep_options(files, tmp_path)


@pytest.fixture(scope="session")
def whole_sweep(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Program], Path]:
    """A sweep that nothing interrupted; run once."""
    folder = tmp_path_factory.mktemp("whole")

    def run(program: Program) -> Path:
        if not (folder / "sweep").exists():
            config = config_of(sweep_options(files, folder), folder)
            result = program("sweep", "--config", config)
            assert result.status == 0, result.stderr
            (folder / "stdout").write_text(result.stdout)
        return folder / "sweep"

    return run


@pytest.fixture
def attention_in_training(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ``attn_implementation`` of the student of each training, in order."""
    used: list[str] = []
    train = DistillationTrainer.train

    def noted(self: DistillationTrainer, *arguments: Any, **named: Any) -> Any:
        used.append(self.model.config._attn_implementation)
        return train(self, *arguments, **named)

    monkeypatch.setattr(DistillationTrainer, "train", noted)
    return used
