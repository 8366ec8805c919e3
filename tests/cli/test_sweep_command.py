from __future__ import annotations

import gc
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_runs import Files, Result, assert_says_nothing_about_the_machine
from safetensors.torch import load_file
from sweep_runs import at_call, config_of, in_step, killed_at, outcome, sweep_options
from task_runs import LABELS, OPTIONS, save_model, write_data

from hf_distill import DistillationTrainer
from hf_distill.cli import sweep_trials
from hf_distill.cli.sweep import build_parser
from hf_distill.teachers import LiveTeacher

Program = Callable[..., Result]
COMBINATIONS = [(1.0, 0.5), (1.0, 1.0), (4.0, 0.5), (4.0, 1.0)]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of these trainings goes into looking for garbage."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


@pytest.fixture
def options(files: Files, tmp_path: Path) -> dict[str, Any]:
    return sweep_options(files, tmp_path)


@pytest.fixture(scope="module")
def whole(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Program], Path]:
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


def test_a_grid_is_trained_once_each(
    whole: Callable[[Program], Path], program: Program, files: Files
) -> None:
    folder = whole(program)
    content = outcome(folder)
    assert content["metric"] == "f1" and content["lower_is_better"] is False
    tried = [tuple(trial["parameters"].values()) for trial in content["trials"]]
    assert tried == COMBINATIONS
    values = [trial["value"] for trial in content["trials"]]
    assert len(set(values)) > 1
    assert content["best"] == values.index(max(values))
    for number, (temperature, weight) in enumerate(COMBINATIONS):
        trial = metrics(folder / f"trial-{number:04d}")
        assert trial["eval"]["f1"] == values[number]
        assert trial["distillation"]["temperature"] == temperature
        assert trial["distillation"]["distillation_loss_weight"] == weight
        assert trial["teacher_model"] == "teacher" and trial["steps"] == 4
    students = sorted(path.parent.name for path in folder.rglob("model.safetensors"))
    assert students == [f"trial-{content['best']:04d}"]
    assert not list(folder.rglob("checkpoint-*"))
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    for text in ((folder / "sweep.md").read_text(), (folder.parent / "stdout").read_text()):
        ranked = sorted(values, reverse=True)
        places = [text.rindex(f"{value:.2f}") for value in dict.fromkeys(ranked)]
        assert f"Best: f1 {ranked[0]:.2f}" in text and len(places) > 1
    assert_says_nothing_about_the_machine(folder, str(folder.parent), str(files.folder))


def test_a_trial_is_a_training_like_any_other(
    whole: Callable[[Program], Path],
    program: Program,
    files: Files,
    train_options: list[str],
    tmp_path: Path,
) -> None:
    folder = whole(program)
    best = folder / f"trial-{outcome(folder)['best']:04d}"
    parameters = outcome(folder)["trials"][outcome(folder)["best"]]["parameters"]
    # With its own options …
    result = program("train", "--config", best / "options.yaml", "--output_dir", tmp_path / "again")
    assert result.status == 0, result.stderr
    assert same_weights(best, tmp_path / "again")
    # … and by hand, over the same cache.
    at = train_options.index("--teacher_model")
    by_hand = train_options[:at] + train_options[at + 2 :]
    by_hand += [word for name, value in parameters.items() for word in (f"--{name}", value)]
    by_hand += ["--teacher_outputs", folder / "teacher_outputs", "--learning_rate", "1e-2"]
    result = program(*by_hand)
    assert result.status == 0, result.stderr
    assert same_weights(best, tmp_path / "out")


KILLS = {
    "before the first step": in_step(0, 0),
    "between two checkpoints": in_step(1, 3),
    "just after a checkpoint": in_step(2, 2),
    "while the teacher is cached": at_call("hf_distill.cli.cache:run", 1),
    "once it is cached": at_call("hf_distill.cli.cache:run", 1, after=True),
    "before a trial is written down": at_call("hf_distill.sweeping.study:SweepStudy.begin", 2),
    "once it is written down": at_call("hf_distill.sweeping.study:SweepStudy.begin", 2, after=True),
    "between training and result": at_call(
        "hf_distill.cli.sweep_trials:run_request", 2, after=True
    ),
    "between result and study": at_call("hf_distill.cli.sweep_run:run_trial", 2, after=True),
    "between study and table": at_call("hf_distill.cli.sweep_run:value_of", 3, after=True),
    "before students are deleted": at_call("hf_distill.cli.sweep_run:forget_student", 3),
    "before the picture": at_call("hf_distill.reporting.sweep_plot:plot_sweep", 1),
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_called_again_it_ends_with_the_same_table(
    place: str,
    whole: Callable[[Program], Path],
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    reference = whole(program)
    killed_at(options, tmp_path, KILLS[place])
    again = program("sweep", "--config", config_of(options, tmp_path))
    assert again.status == 0, again.stderr
    folder = tmp_path / "sweep"
    assert outcome(folder) == outcome(reference)
    best = f"trial-{outcome(folder)['best']:04d}"
    assert same_weights(folder / best, reference / best)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {p.relative_to(reference) for p in reference.rglob("*") if p.is_file()}


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """From which checkpoint each training of this process begins."""
    begun: list[str | None] = []
    train = DistillationTrainer.train

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        checkpoint = kwargs.get("resume_from_checkpoint")
        begun.append(checkpoint and Path(checkpoint).name)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", spy)
    return begun


def test_what_is_done_is_not_done_again(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(options, tmp_path, in_step(1, 3))
    begun = trainings(monkeypatch)
    config = config_of(options, tmp_path)
    assert program("sweep", "--config", config, "--n_trials", "3").status == 0
    assert begun == ["checkpoint-2", None]
    # Finished: nothing is loaded, and no teacher is looked for.
    begun.clear()
    again = program("sweep", "--config", config, "--n_trials", "3")
    assert again.status == 0 and begun == [] and "is finished" in again.stderr
    # More of it.
    assert program("sweep", "--config", config).status == 0
    assert begun == [None]
    assert [t["number"] for t in outcome(tmp_path / "sweep")["trials"]] == [0, 1, 2, 3]


def test_the_teacher_runs_once(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    create = LiveTeacher.__init__

    def spy(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        create(self, *args, **kwargs)

    monkeypatch.setattr(LiveTeacher, "__init__", spy)
    options["search_space"] = {"temperature": [1, 2, 3]}
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    assert len(made) == 1
    made.clear()
    options |= {"output_dir": str(tmp_path / "live"), "live_teacher": True}
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    assert len(made) >= 3 and not (tmp_path / "live" / "teacher_outputs").exists()
    cached, live = (
        [trial["value"] for trial in outcome(tmp_path / name)["trials"]]
        for name in ("sweep", "live")
    )
    assert cached == live


def test_two_stages_in_a_trial(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options |= {"live_teacher": True, "intermediate_max_steps": 4, "layer_mapping": "last"}
    options["search_space"] = {"attention_loss_weight": [0, 2], "hidden_states_loss_weight": [1]}
    killed_at(options, tmp_path, in_step(1, 3))  # of the first stage
    begun = trainings(monkeypatch)
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    assert begun == ["checkpoint-2", None]
    whole = {**options, "output_dir": str(tmp_path / "whole")}
    assert program("sweep", "--config", config_of(whole, tmp_path)).status == 0
    assert outcome(tmp_path / "sweep") == outcome(tmp_path / "whole")
    without, with_attention = outcome(tmp_path / "sweep")["trials"]
    assert without["parameters"] == {"attention_loss_weight": 0.0, "hidden_states_loss_weight": 1.0}
    assert with_attention["failure"] is None


@pytest.mark.parametrize(
    ("task", "metric", "lower"),
    [("text-classification", "accuracy", False), ("text-generation", "perplexity", True)],
)
def test_other_tasks_and_their_primary_metric(
    task: str, metric: str, lower: bool, program: Program, tmp_path: Path
) -> None:
    labels = LABELS.get(task, {})
    data = write_data(tmp_path, task)
    words = [
        *("sweep", "--task", task, "--train_file", data, "--validation_file", data),
        *("--student_model", save_model(tmp_path / "student", task, **labels)),
        *("--teacher_model", save_model(tmp_path / "teacher", task, seed=1, layers=2, **labels)),
        *("--output_dir", tmp_path / "sweep", "--max_steps", "2", "--learning_rate", "1e-2"),
        *("--search_space", "{temperature: {low: 1, high: 3, log: true}}", "--n_trials", "3"),
        *("--use_cpu", "--disable_tqdm", "true", "--teacher_trial_samples", "0"),
        *OPTIONS.get(task, []),
    ]
    result = program(*words)
    assert result.status == 0, result.stderr
    content = outcome(tmp_path / "sweep")
    assert (content["metric"], content["lower_is_better"]) == (metric, lower)
    assert content["settings"]["sampler"] == "tpe" and len(content["trials"]) == 3
    values = [trial["value"] for trial in content["trials"]]
    assert content["best"] == values.index((min if lower else max)(values))


def test_masks_that_are_drawn_anew_need_a_live_teacher(program: Program, tmp_path: Path) -> None:
    task = "fill-mask"
    data = write_data(tmp_path, task)
    words = [
        *("sweep", "--task", task, "--train_file", data, "--validation_file", data),
        *("--student_model", save_model(tmp_path / "student", task)),
        *("--teacher_model", save_model(tmp_path / "teacher", task, seed=1, layers=2)),
        *("--output_dir", tmp_path / "sweep", "--max_steps", "2", "--use_cpu"),
        *("--search_space", "{temperature: [1, 2]}", "--disable_tqdm", "true"),
        *("--teacher_trial_samples", "0", *OPTIONS[task]),
    ]
    result = program(*words)
    assert result.status == 2 and "--live_teacher" in result.stderr, result.stderr
    result = program(*words, "--live_teacher")
    assert result.status == 0, result.stderr
    assert len(outcome(tmp_path / "sweep")["trials"]) == 2


def test_seeds_are_trained_each_and_averaged(
    program: Program,
    options: dict[str, Any],
    encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options |= {"student_model": encoder, "seeds": [0, 1, 2], "keep_all_trials": True}
    options["search_space"] = {"temperature": [2]}
    killed_at(options, tmp_path, at_call("hf_distill.cli.sweep_trials:run_request", 2, after=True))
    begun = trainings(monkeypatch)
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    assert len(begun) == 1  # two were done
    folder = tmp_path / "sweep"
    (trial,) = outcome(folder)["trials"]
    scores = [metrics(folder / "trial-0000" / f"seed-{s}")["eval"]["f1"] for s in range(3)]
    assert trial["values"] == scores and len(set(scores)) > 1
    mean = sum(scores) / 3
    spread = (sum((score - mean) ** 2 for score in scores) / 2) ** 0.5
    assert trial["value"] == pytest.approx(mean) and trial["spread"] == pytest.approx(spread)
    assert f"{mean:.2f} ± {spread:.2f}" in (folder / "sweep.md").read_text()
    students = list(folder.glob("trial-0000/seed-*/model.safetensors"))
    assert len(students) == 3 and list(folder.rglob("checkpoint-*"))
    alone = yaml.safe_load((folder / "trial-0000" / "seed-1" / "options.yaml").read_text())
    assert alone["seed"] == 1


def test_a_metric_that_is_an_error_is_minimized(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    result = program("sweep", "--config", config_of(options, tmp_path), "--metric", "eval_loss")
    assert result.status == 0, result.stderr
    content = outcome(tmp_path / "sweep")
    values = [trial["value"] for trial in content["trials"]]
    assert content["metric"] == "loss" and content["lower_is_better"] is True
    assert len(set(values)) > 1 and content["best"] == values.index(min(values))


def test_an_unknown_metric_is_named_with_those_there_are(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = trainings(monkeypatch)
    config = config_of(options, tmp_path)
    result = program("sweep", "--config", config, "--metric", "accuracy")
    assert result.status == 2 and len(begun) == 1
    assert "--metric accuracy: there is no such figure; there are" in result.stderr
    assert "exact_match" in result.stderr and "runtime" not in result.stderr.splitlines()[-2]
    # Mended, it goes on; the training was not in vain.
    result = program("sweep", "--config", config, "--metric", "eval_exact_match")
    assert result.status == 0, result.stderr
    assert len(begun) == 4
    assert outcome(tmp_path / "sweep")["metric"] == "exact_match"
    result = program("sweep", "--config", config, "--metric", "f1")
    assert "metric was 'exact_match' and is 'f1'" in result.stderr
    killed_at(
        {**options, "output_dir": str(tmp_path / "c")}, tmp_path, KILLS["between result and study"]
    )
    result = program(
        "sweep", "--config", config, "--output_dir", tmp_path / "c", "--metric", "loss"
    )
    assert result.status == 2 and "metric was" in result.stderr
    killed_at(
        {**options, "output_dir": str(tmp_path / "d")},
        tmp_path,
        at_call("hf_distill.cli.sweep_run:run_trial", 1, after=True),
    )
    result = program(
        "sweep", "--config", config, "--output_dir", tmp_path / "d", "--metric", "loss"
    )
    assert result.status == 0, result.stderr
    first = outcome(tmp_path / "d")["trials"][0]
    assert first["value"] == metrics(tmp_path / "d" / "trial-0000")["eval"]["loss"]
    result = program(
        "sweep", "--config", config, "--metric", "loss_prediction", "--output_dir", tmp_path / "b"
    )
    assert result.status == 2 and "different temperatures" in result.stderr


def failing(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """These trainings run out of memory."""
    run = sweep_trials.run_request

    def stand_in(request: Any) -> Any:
        if int(request.output_dir.name.removeprefix("trial-")) in numbers:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 TiB")
        return run(request)

    monkeypatch.setattr(sweep_trials, "run_request", stand_in)


def test_a_trial_that_fails_does_not_stop_the_others(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 0, 2, 3)  # three, but not in a row
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    content = outcome(tmp_path / "sweep")
    assert [trial["value"] is None for trial in content["trials"]] == [True, False, True, True]
    assert content["trials"][0]["failure"] == "CUDA out of memory. Tried to allocate 3 TiB"
    last_rows = [line for line in result.stdout.splitlines() if line.startswith("│")][-4:]
    assert ["failed" in line for line in last_rows] == [False, True, True, True]
    assert content["best"] == 1


def test_three_failures_in_a_row_stop_it(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["search_space"] = {"temperature": [1, 2, 3, 4, 5]}
    config = config_of(options, tmp_path)
    with monkeypatch.context() as patches:
        failing(patches, 1, 2, 3)
        result = program("sweep", "--config", config)
    assert result.status == 2
    assert "3 trials in a row failed, the last one: CUDA out of memory." in result.stderr
    assert len(outcome(tmp_path / "sweep")["trials"]) == 4
    assert program("sweep", "--config", config).status == 0
    assert [t["failure"] is None for t in outcome(tmp_path / "sweep")["trials"]] == [
        True, False, False, False, True,
    ]  # fmt: skip


def test_a_student_that_diverges_has_failed(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"max_grad_norm": 0.0, "optim": "sgd"}
    options["search_space"] = {"learning_rate": [1e-3, 1e30]}
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    good, bad = outcome(tmp_path / "sweep")["trials"]
    assert good["failure"] is None and bad["value"] is None
    assert "nan" in bad["failure"]


def test_a_classifier_that_diverges_has_failed(program: Program, tmp_path: Path) -> None:
    task = "text-classification"
    data = write_data(tmp_path, task)
    result = program(
        *("sweep", "--task", task, "--train_file", data, "--validation_file", data),
        *("--student_model", save_model(tmp_path / "student", task, **LABELS[task])),
        *("--baseline", "--output_dir", tmp_path / "sweep", "--max_steps", "3", "--use_cpu"),
        *("--search_space", "{learning_rate: [1.0e+30, 1.0e-3]}", "--max_grad_norm", "0"),
        *("--optim", "sgd", "--disable_tqdm", "true"),
    )
    assert result.status == 0, result.stderr
    bad, good = outcome(tmp_path / "sweep")["trials"]
    # Its accuracy is a number: of a label that is always the same.
    assert metrics(tmp_path / "sweep" / "trial-0000")["eval"]["accuracy"] is not None
    assert bad["failure"] == "the student diverged (eval loss is not finite)"
    assert bad["value"] is None and good["value"] is not None


def test_what_a_training_would_refuse_is_refused_before(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise ValueError("this teacher cannot teach")

    begun = trainings(monkeypatch)
    monkeypatch.setattr(DistillationTrainer, "_check_before_training", refuse)
    with pytest.raises(ValueError, match="this teacher cannot teach"):
        program("sweep", "--config", config_of(options, tmp_path))
    assert begun == [] and not (tmp_path / "sweep" / "sweep.json").exists()


def test_a_folder_of_another_trial_is_not_taken_for_its_own(
    whole: Callable[[Program], Path], program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    killed_at(options, tmp_path, KILLS["before a trial is written down"])
    folder = tmp_path / "sweep"
    shutil.copytree(folder / "trial-0000", folder / "trial-0001")
    (folder / "trial-0001" / "result.json").unlink()
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    assert outcome(folder) == outcome(whole(program))


def test_no_room_stops_the_sweep_and_keeps_the_trial(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(request: Any) -> None:
        raise OSError(28, "No space left on device")

    config = config_of(options, tmp_path)
    with monkeypatch.context() as patches:
        patches.setattr(sweep_trials, "run_request", full)
        result = program("sweep", "--config", config)
    assert result.status == 2 and "No space left" in result.stderr
    assert program("sweep", "--config", config).status == 0
    assert all(trial["failure"] is None for trial in outcome(tmp_path / "sweep")["trials"])


def test_another_sweep_does_not_go_on_in_its_folder(
    whole: Callable[[Program], Path], program: Program, files: Files, tmp_path: Path
) -> None:
    folder = whole(program)
    options = sweep_options(files, folder.parent)
    before = outcome(folder)
    other = Path(files.train).with_name("other.json")
    other.write_text(Path(files.train).read_text() + "\n")
    changes: dict[str, tuple[Any, str]] = {
        "search_space": ({"temperature": [1, 5]}, "temperature was [1.0, 4.0] and is [1.0, 5.0]"),
        "max_steps": (5, "max_steps was 4 and is 5"),
        "sampler": ("tpe", 'sampler was "grid" and is "tpe"'),
        "seeds": ([1], "seeds was [42] and is [1]"),
        "metric": ("exact_match", "metric was 'f1' and is 'exact_match'"),
        "train_file": (str(other), "other.json"),
        "teacher_model": (files.models["student_alone"], 'is "student_alone"'),
    }
    for name, (value, says) in changes.items():
        changed = config_of({**options, name: value}, tmp_path)
        result = program("sweep", "--config", changed)
        assert result.status == 2 and "holds another sweep" in result.stderr
        assert says in result.stderr, result.stderr
    assert outcome(folder) == before
    # What has no bearing on the trials may change.
    free = {**options, "logging_steps": 3, "save_steps": 4, "disable_tqdm": False}
    assert program("sweep", "--config", config_of(free, tmp_path)).status == 0
    Path(files.validation).touch()
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("hf_distill.cli.sweep_plan.content_hash", lambda source: "0" * 64)
        result = program("sweep", "--config", config_of(options, tmp_path))
    assert "train_file train.json has other content" in result.stderr


def test_an_earlier_sweep_is_replaced_if_asked(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["search_space"] = {"temperature": [1, 2]}
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    cache = tmp_path / "sweep" / "teacher_outputs"
    before = {path: path.stat().st_mtime_ns for path in cache.glob("part*")}
    options["search_space"] = {"temperature": [3]}
    begun = trainings(monkeypatch)
    config = config_of(options, tmp_path)
    assert program("sweep", "--config", config, "--overwrite_output_dir").status == 0
    assert len(begun) == 1
    assert [t["parameters"] for t in outcome(tmp_path / "sweep")["trials"]] == [{"temperature": 3}]
    assert sorted(path.name for path in (tmp_path / "sweep").glob("trial-*")) == ["trial-0000"]
    assert before == {path: path.stat().st_mtime_ns for path in cache.glob("part*")} != {}


def test_a_folder_with_something_else_is_refused(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "model.safetensors").write_text("mine")
    for flags in ([], ["--overwrite_output_dir"]):
        result = program("sweep", "--config", config_of(options, tmp_path), *flags)
        assert result.status == 2 and "holds other files (model.safetensors)" in result.stderr
    assert (tmp_path / "sweep" / "model.safetensors").read_text() == "mine"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"search_space": None}, "there is nothing to search"),
    ({"search_space": {"temprature": [1]}}, "no option 'temprature'. Did you mean temperature?"),
    ({"search_space": {"temperature": []}}, "temperature is an empty list"),
    ({"search_space": {"temperature": [2, 0]}}, "with temperature=0.0: temperature must be"),
    ({"search_space": {"temperature": {"low": 4, "high": 1}}}, "low 4.0 and high 1.0"),
    ({"search_space": {"temperature": {"low": -1, "high": 1}}, "sampler": "random"},
     "with temperature=-1.0: temperature must be"),
    ({"search_space": {"temperature": ["warm"]}}, "invalid float value: 'warm'"),
    ({"search_space": {"distillation_loss": ["kl_div", "k"]}}, "invalid choice: 'k'"),
    ({"search_space": {"distillation_loss": {"low": 1, "high": 2}}}, "invalid choice"),
    ({"search_space": {"output_dir": ["a", "b"]}}, "output_dir cannot be searched: each trial"),
    ({"search_space": {"task": ["fill-mask"]}}, "task cannot be searched"),
    ({"search_space": {"n_trials": [1]}}, "no option 'n_trials'"),
    ({"search_space": {"max_length": [32, 48]}}, "belong to one preparation of the data"),
    ({"search_space": {"doc_stride": [8]}}, "belong to one preparation of the data"),
    ({"search_space": {"max_train_samples": [8]}}, "belong to one preparation of the data"),
    ({"search_space": {"validation_file": ["a"]}}, "different data cannot be compared"),
    ({"search_space": {"teacher_model": ["a"]}}, "cached once"),
    ({"search_space": {"bf16": [True]}}, "one precision"),
    ({"search_space": {"seed": [1, 2]}, "seeds": [1]}, "--seeds are trained"),
    ({"search_space": {"push_to_hub": [True]}}, "not pushed"),
    ({"search_space": {"label_names": ["a"]}}, "takes a list"),
    ({"search_space": {"learning_rate": {"low": 1e-5, "high": 1e-3}}, "sampler": "grid"},
     "learning_rate is a range without a step"),
    ({"search_space": {"temperature_schedule": ["linear", "constant"]}},
     "needs temperature_end"),
    ({"teacher_model": None}, "--teacher_model is missing"),
    ({"validation_file": None}, "pass --validation_file"),
    ({"train_file": None}, "there is no training data"),
    ({"n_trials": 0}, "--n_trials 0 must be at least 1"),
    ({"seeds": [1, 1]}, "--seeds has 1 twice"),
    ({"seeds": [-1]}, "--seeds -1 must be 0 or more"),
    ({"resume_from_checkpoint": "last"}, "goes on by itself"),
    ({"push_to_hub": True}, "pushes nothing"),
    ({"stage": "intermediate"}, "no score to search by"),
    ({"intermediate_epochs": 1}, "--intermediate_epochs 1.0 needs the teacher itself"),
    ({"search_space": {"attention_loss_weight": [0, 1]}}, "add --live_teacher"),
    ({"live_teacher": True, "teacher_outputs": "o"}, "leave --teacher_outputs out"),
    ({"sampler": "annealing"}, "invalid choice: 'annealing'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_mistakes_are_found_before_anything_is_trained(
    change: dict[str, Any],
    says: str,
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = trainings(monkeypatch)
    result = program("sweep", "--config", config_of({**options, **change}, tmp_path))
    assert result.status == 2
    assert says in result.stderr, result.stderr
    assert begun == []


def test_the_search_space_on_the_command_line(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    del options["search_space"]
    config = config_of({**options, "temperature": 9.0}, tmp_path)
    words = ("sweep", "--config", config, "--search_space")
    result = program(*words, "{temperature: [1")
    assert result.status == 2 and "--search_space cannot be read" in result.stderr
    result = program(*words, "{temperature: [3], layer_mapping: ['3:6']}")
    assert result.status == 0, result.stderr
    (trial,) = outcome(tmp_path / "sweep")["trials"]
    assert trial["parameters"] == {"temperature": 3.0, "layer_mapping": "3:6"}
    assert metrics(tmp_path / "sweep" / "trial-0000")["distillation"]["temperature"] == 3.0


def test_a_student_alone_can_be_searched_for(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"baseline": True, "search_space": {"learning_rate": [1e-3, 1e-2]}}
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    assert not (tmp_path / "sweep" / "teacher_outputs").exists()
    assert metrics(tmp_path / "sweep" / "trial-0000")["teacher_model"] is None


def test_without_optuna_it_says_what_to_install(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "optuna" else find(name, *rest),
    )
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 2 and "pip install hf-distill[sweep]" in result.stderr


def test_it_is_one_process(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 2 and "a sweep is one process" in result.stderr


def test_help_lists_the_search_first() -> None:
    text = build_parser().format_help()
    assert text.index("--search_space") < text.index("--student_model") < text.index("--max_steps")
    assert "sweep.png" in text
