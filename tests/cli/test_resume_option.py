"""``--resume``: one command for the beginning and for every time after an interruption."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from task_runs import save_model
from transformers import TrainerCallback
from two_stage_runs import Killed, checkpoints, kill, metrics, same, weights

from hf_distill import DistillationTrainer
from hf_distill.checkpoints import last_complete_checkpoint

RESUME = ("--resume",)


def test_one_command_begins_goes_on_and_ends(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    for stage, step in (("intermediate", 1), ("intermediate", 3), ("prediction", 1)):
        with monkeypatch.context() as patch:
            kill(patch, stage=stage, step=step)
            with pytest.raises(Killed):
                program(*two_stages, *RESUME)
    result = program(*two_stages, *RESUME)
    assert result.status == 0, result.stderr
    assert same(weights(out), weights(unbroken))
    assert same(weights(out / "intermediate"), weights(unbroken / "intermediate"))
    written = (out / "metrics.json").stat().st_mtime_ns
    again = program(*two_stages, *RESUME)
    assert again.status == 0
    assert "is finished" in again.stderr and "of 4: loss " not in again.stderr
    assert (out / "metrics.json").stat().st_mtime_ns == written


def test_a_new_run_over_a_finished_one_is_not_finished(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole(program, two_stages), out)
    with monkeypatch.context() as patch:
        kill(patch, stage="intermediate", step=3)
        with pytest.raises(Killed):
            program(*two_stages, "--seed", "7", "--overwrite_output_dir")
    result = program(*two_stages, "--seed", "7", *RESUME)
    assert result.status == 0, result.stderr
    assert "is finished" not in result.stderr
    assert metrics(out)["steps"] == 4
    assert not same(weights(out), weights(whole(program, two_stages)))


OTHER_SETTINGS: dict[tuple[str, ...], str] = {
    ("--temperature", "7"): "- temperature was 2.0 and is now 7.0",
    ("--max_steps", "8"): "- max_steps was 4 and is now 8",
    ("--intermediate_max_steps", "8"): "- max_steps was 4 and is now 8",
    ("--attention_loss", "relations"): '- attention_loss was "scores" and is now "relations"',
    ("--learning_rate", "1e-4"): "- learning_rate was 0.001 and is now 0.0001",
    ("--task", "text-classification"): '- task was "question-answering" and is now "text-',
    ("--teacher_model", "org/other"): '- teacher_model was "teacher" and is now "org/other"',
    ("--student_model", "org/small"): 'and is now "org/small"',
    ("--train_file", "other.json"): '- train_data was "train.json" and is now "other.json"',
    ("--baseline",): "- stages was 2 and is now 1",
}


@pytest.mark.parametrize("words", OTHER_SETTINGS, ids=" ".join)
def test_a_finished_run_is_none_with_other_settings(
    words: tuple[str, ...], two_stages: list[str], whole: Any, program: Any
) -> None:
    done = whole(program, two_stages)
    result = program(*two_stages, "--output_dir", done, *words, *RESUME)
    assert result.status == 2
    assert OTHER_SETTINGS[words] in result.stderr, result.stderr
    assert f"--output_dir {done} holds a finished run with other settings" in result.stderr


@pytest.mark.parametrize("further", [(), ("--baseline",), ("--max_steps", "-1")])
def test_a_finished_run_is_known_by_its_own_settings(
    further: tuple[str, ...], train_options: list[str], program: Any
) -> None:
    epochs = ("--num_train_epochs", "1.5")
    for _ in range(2):
        result = program(*train_options, *epochs, *further, *RESUME)
        assert result.status == 0, result.stderr
    assert "is finished; nothing is left to do" in result.stderr


@pytest.mark.parametrize(
    "other", [("--overwrite_output_dir",), ("--resume_from_checkpoint", "last")]
)
def test_contradictions_are_refused(
    other: tuple[str, ...], two_stages: list[str], program: Any, tmp_path: Path
) -> None:
    result = program(*two_stages, *RESUME, *other)
    assert result.status == 2
    assert f"--resume and {other[0]} contradict each other" in result.stderr


def test_the_folder_of_a_model_is_not_a_run(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in whole(program, two_stages).glob("*.safetensors"):
        shutil.copy(path, out)
    before = weights(out)
    result = program(*two_stages, *RESUME)
    assert result.status == 2
    assert "holds an earlier run (model.safetensors)" in result.stderr
    assert same(weights(out), before)


def test_another_teacher_is_refused_by_name(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole(program, two_stages), out)
    (out / "metrics.json").unlink()
    result = program(*two_stages, "--temperature", "7", *RESUME)
    assert result.status == 2
    assert "temperature was 2.0 and is now 7.0" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_labels_are_refused_without_a_teacher(
    program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Their alphabetical order would turn the trained head around."""
    save_model(tmp_path / "model", "text-classification")
    for file, labels in (("one", ("no", "yes")), ("two", ("reject", "accept"))):
        rows = [f"{text},{labels[text == 'good']}" for text in ("good", "bad") * 4]
        (tmp_path / f"{file}.csv").write_text("\n".join(["text,label", *rows]))
    options = [
        "train", "--task", "text-classification", "--baseline", "--use_cpu", *RESUME,
        "--student_model", tmp_path / "model", "--output_dir", tmp_path / "out",
        "--max_steps", "4", "--save_steps", "1", "--train_file",
    ]  # fmt: skip
    with monkeypatch.context() as patch:
        kill(patch, stage="prediction", step=2)
        with pytest.raises(Killed):
            program(*options, tmp_path / "one.csv")
    before = checkpoints(tmp_path / "out")
    result = program(*options, tmp_path / "two.csv")
    assert result.status == 2
    assert 'student.id2label.0 was "no" and is now "accept"' in result.stderr
    assert checkpoints(tmp_path / "out") == before
    assert program(*options, tmp_path / "one.csv").status == 0


@pytest.mark.parametrize("stage", ["intermediate", "prediction"])
def test_a_sigterm_ends_the_command_with_its_status(
    stage: str,
    two_stages: list[str],
    whole: Any,
    program: Any,
    tmp_path: Path,
    monkeypatch: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        _tell(patch, stage)
        result = program(*two_stages, *RESUME)
    assert result.status == 143
    assert "repeat the command with --resume" in result.stderr
    assert "resume_from_checkpoint" not in result.stderr + caplog.text
    folder = out / stage if stage == "intermediate" else out
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    assert checkpoints(folder) == ["checkpoint-2"]
    assert program(*two_stages, *RESUME).status == 0
    assert same(weights(out), weights(unbroken))


@pytest.mark.parametrize("saves", ["steps", "no"])
def test_a_terminated_run_does_not_lose_a_stage_that_is_trained(
    saves: str, two_stages: list[str], whole: Any, program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """SIGTERM between the two stages: the first is written to its end, the second not begun."""
    unbroken = whole(program, two_stages)
    out = tmp_path / "out"
    untouched = DistillationTrainer.save_model

    def save_model(self: DistillationTrainer, *args: Any, **kwargs: Any) -> None:
        if not self.is_in_train:
            signal.raise_signal(signal.SIGTERM)
        untouched(self, *args, **kwargs)

    options = [*two_stages, "--save_strategy", saves]
    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "save_model", save_model)
        result = program(*options, *RESUME)
    assert result.status == 143
    assert "Stage 2 of 2" not in result.stderr
    assert "--resume" in result.stderr.splitlines()[-1]
    assert same(weights(out / "intermediate"), weights(unbroken / "intermediate"))
    result = program(*options, *RESUME)
    assert result.status == 0
    assert "The intermediate stage is done" in result.stderr
    assert same(weights(out), weights(unbroken))


def _tell(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    untouched = DistillationTrainer.train

    def train(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.args.stage == stage:

            class Tell(TrainerCallback):
                def on_step_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
                    if state.global_step == 1:
                        signal.raise_signal(signal.SIGTERM)

            self.add_callback(Tell())
        return untouched(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", train)
