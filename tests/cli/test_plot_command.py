"""``hf-distill train --record_steps`` and ``hf-distill plot``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from cli_runs import Files, Result
from safetensors.torch import load_file
from tiny import model_for, tokenizer

from hf_distill.layers.samples import read_sample
from hf_distill.reports import attention_maps

Program = Callable[..., Result]
STAGES = ("--intermediate_max_steps", "3")


def sample(step: int) -> str:
    return f"step-{step:08d}.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of 2 and 4 layers."""
    words = []
    for seed, (who, layers) in enumerate({"student": 2, "teacher": 4}.items()):
        folder = tmp_path_factory.mktemp(who)
        model_for("question-answering", seed=seed, layers=layers).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        words += [f"--{who}_model", str(folder)]
    return words


@pytest.fixture
def recorded(
    tmp_path_factory: pytest.TempPathFactory, models: list[str], train_options: list[str],
    program: Program, tmp_path: Path,
) -> Path:  # fmt: skip
    """A run of two stages, 3 + 4 steps, every second one recorded; made once, copied each time."""
    whole = tmp_path_factory.getbasetemp() / "recorded run"
    if not whole.exists():
        made = tmp_path / "made"
        result = program(
            *train_options, *models, *STAGES, "--record_steps", "2", "--output_dir", made
        )
        assert result.status == 0, result.stderr
        shutil.move(made, whole)
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pictures").iterdir())


def test_samples_are_recorded_and_change_nothing(
    recorded: Path, models: list[str], train_options: list[str], program: Program, tmp_path: Path
) -> None:
    for stage in (recorded, recorded / "intermediate"):
        files = sorted(path.name for path in (stage / "samples").iterdir())
        assert files == [sample(0), sample(2)]
        one = read_sample(stage / "samples" / sample(2))
        assert one.tokens is not None and one.tokens[0] == "[CLS]"
        assert [tuple(pair) for pair in one.layer_pairs] == [(0, 0), (1, 2), (2, 4)]
    out = tmp_path / "out"
    assert program(*train_options, *models, *STAGES).status == 0
    assert not (out / "samples").exists()
    plain, with_samples = (load_file(f / "model.safetensors") for f in (out, recorded))
    assert all(torch.equal(plain[name], with_samples[name]) for name in plain)


def test_the_last_sentence_and_pair_of_both_stages(recorded: Path, program: Program) -> None:
    result = program("plot", recorded)
    assert result.status == 0, result.stderr
    expected = [
        "attention_step_2_layers_2_4.png",
        "intermediate_attention_step_2_layers_2_4.png",
        "intermediate_losses.png",
        "losses.png",
    ]
    assert pictures(recorded) == expected
    for name in expected:
        assert name in result.stdout.replace("\n", "")
        assert matplotlib.image.imread(recorded / "pictures" / name).shape[0] > 100
    said = " ".join(result.stdout.replace("│", " ").split())
    assert "intermediate stage: losses up to step 3" in said
    assert "[CLS]" in said


def test_what_is_asked_for_is_drawn(
    recorded: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = attention_maps.plot_attention

    def plot(sample: Any, pair: Any, path: Path, *, head: int | None) -> Path:
        drawn.append((sample.step, tuple(pair), head, path.parent.name))
        return original(sample, pair, path, head=head)

    monkeypatch.setattr(attention_maps, "plot_attention", plot)
    result = program("plot", recorded, "--step", "0", "--layers", "1:4", "--head", "1")
    assert result.status == 0, result.stderr
    assert drawn == [(0, (1, 4), 1, "pictures")] * 2
    assert "attention_step_0_layers_1_4_head_1.png" in pictures(recorded)


def test_an_unfinished_run_can_be_looked_at(recorded: Path, program: Program) -> None:
    for stage in (recorded, recorded / "intermediate"):
        (stage / "trainer_state.json").unlink()
    shutil.rmtree(recorded / "samples")
    result = program("plot", recorded)
    assert result.status == 0, result.stderr
    assert "losses.png" in pictures(recorded)
    assert "intermediate_attention_step_2_layers_2_4.png" in pictures(recorded)


def test_losses_alone(recorded: Path, program: Program) -> None:
    for stage in (recorded, recorded / "intermediate"):
        shutil.rmtree(stage / "samples")
    result = program("plot", recorded)
    assert result.status == 0, result.stderr
    assert pictures(recorded) == ["intermediate_losses.png", "losses.png"]
    assert "--record_steps" in result.stderr


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--step", "7"], ["--step 7", "[0, 2]"]),
        (["--layers", "2"], ["--layers 2", "1:2, 2:4"]),
        (["--layers", "1:3"], ["--layers 1:3", "1:2, 2:4"]),
        (["--layers", "0:0"], ["--layers 0:0"]),
        (["--head", "2"], ["head=2", "0 to 1"]),
        (["--head", "-1"], ["head=-1"]),
    ],
)
def test_what_is_not_there_is_refused(
    options: list[str], fragments: list[str], recorded: Path, program: Program
) -> None:
    result = program("plot", recorded, *options)
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def test_a_folder_without_a_run(tmp_path: Path, program: Program) -> None:
    result = program("plot", tmp_path / "nowhere")
    assert result.status == 2 and f"{tmp_path / 'nowhere'}: " in result.stderr
    result = program("plot", tmp_path)
    assert result.status == 2 and "nothing to draw" in result.stderr
    (tmp_path / "trainer_state.json").write_text("{")
    result = program("plot", tmp_path)
    assert result.status == 2 and "trainer_state.json" in result.stderr


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_is_shorter_than_its_logging_steps(
    finished: bool, train_options: list[str], tmp_path: Path, program: Program
) -> None:
    result = program(*train_options, "--logging_steps", "100", "--save_steps", "4")
    assert result.status == 0, result.stderr
    if not finished:
        (tmp_path / "out" / "trainer_state.json").unlink()
    result = program("plot", tmp_path / "out")
    assert result.status == 2
    assert "no loss was logged in 4 steps. Train with --logging_steps" in result.stderr


def test_a_damaged_sample_is_named(recorded: Path, program: Program) -> None:
    file = recorded / "samples" / sample(2)
    file.write_bytes(file.read_bytes()[:200])
    result = program("plot", recorded)
    assert result.status == 2
    assert sample(2) in result.stderr and "remove the file" in result.stderr


def test_a_new_run_forgets_the_samples_of_an_earlier_one(
    recorded: Path, models: list[str], train_options: list[str], program: Program
) -> None:
    again = [*train_options, *models, "--output_dir", recorded, "--record_steps", "3"]
    refused = program(*again)
    assert refused.status == 2 and "--overwrite_output_dir" in refused.stderr
    assert program(*again, "--overwrite_output_dir").status == 0
    assert sorted(p.name for p in (recorded / "samples").iterdir()) == [sample(0), sample(3)]
    assert not list((recorded / "intermediate" / "samples").iterdir())


def test_a_baseline_records_nothing_and_says_so(
    files: Files, train_options: list[str], program: Program, tmp_path: Path
) -> None:
    result = program(*train_options, "--baseline", "--record_steps", "1")
    assert result.status == 0, result.stderr
    assert "recorded samples" in result.stderr
    assert not (tmp_path / "out" / "samples").exists()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 4
