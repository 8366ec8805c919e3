from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import Files, assert_says_nothing_about_the_machine
from sweep_runs import (
    KILLS,
    Program,
    at_call,
    config_of,
    in_step,
    killed_at,
    metrics,
    outcome,
    same_weights,
    trainings,
)
from task_runs import LABELS, OPTIONS, save_model, write_data

from hf_distill.teachers import LiveTeacher

pytestmark = pytest.mark.usefixtures("no_garbage_collection")
COMBINATIONS = [(1.0, 0.5), (1.0, 1.0), (4.0, 0.5), (4.0, 1.0)]


def test_a_grid_is_trained_once_each(
    whole_sweep: Callable[[Program], Path], program: Program, files: Files
) -> None:
    folder = whole_sweep(program)
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
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "<script" not in page and str(folder.parent) not in page
    assert "hf-distill sweep --config" in page and "Best: " in page
    for text in ((folder / "sweep.md").read_text(), (folder.parent / "stdout").read_text()):
        ranked = sorted(values, reverse=True)
        places = [text.rindex(f"{value:.2f}") for value in dict.fromkeys(ranked)]
        assert f"Best: f1 {ranked[0]:.2f}" in text and len(places) > 1
    assert_says_nothing_about_the_machine(folder, str(folder.parent), str(files.folder))


def test_a_trial_is_a_training_like_any_other(
    whole_sweep: Callable[[Program], Path],
    program: Program,
    files: Files,
    train_options: list[str],
    tmp_path: Path,
) -> None:
    folder = whole_sweep(program)
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


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLS)
def test_killed_and_called_again_it_ends_with_the_same_table(
    place: str,
    whole_sweep: Callable[[Program], Path],
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    reference = whole_sweep(program)
    killed_at(options, tmp_path, KILLS[place])
    again = program("sweep", "--config", config_of(options, tmp_path))
    assert again.status == 0, again.stderr
    folder = tmp_path / "sweep"
    assert outcome(folder) == outcome(reference)
    best = f"trial-{outcome(folder)['best']:04d}"
    assert same_weights(folder / best, reference / best)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {p.relative_to(reference) for p in reference.rglob("*") if p.is_file()}


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
        *("--use_cpu", "--disable_tqdm", "true", "--teacher_check_samples", "0"),
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
        *("--teacher_check_samples", "0", *OPTIONS[task]),
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
    assert "--metric accuracy" in result.stderr
    assert "exact_match" in result.stderr and "runtime" not in result.stderr.splitlines()[-2]
    # Fixed, it continues; the training was not in vain.
    result = program("sweep", "--config", config, "--metric", "eval_exact_match")
    assert result.status == 0, result.stderr
    assert len(begun) == 4
    assert outcome(tmp_path / "sweep")["metric"] == "exact_match"
    result = program("sweep", "--config", config, "--metric", "f1")
    assert "metric was 'exact_match' and is now 'f1'" in result.stderr
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


def test_a_sweep_of_an_early_version_without_replicates_is_continued(
    whole_sweep: Callable[[Program], Path],
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    killed_at(options, tmp_path, KILLS["between training and result"])
    folder = tmp_path / "sweep"
    ended = folder / "trial-0000" / "result.json"
    content = json.loads(ended.read_text())
    del content["replicates"]
    ended.write_text(json.dumps(content))
    for path in folder.rglob("replicates.json"):
        path.unlink()
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    wanted = [trial["value"] for trial in outcome(whole_sweep(program))["trials"]]
    trials = outcome(folder)["trials"]
    assert [trial["value"] for trial in trials] == wanted
    assert [trial["interval"] is None for trial in trials] == [True, True, False, False]
