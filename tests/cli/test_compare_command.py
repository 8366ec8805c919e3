from __future__ import annotations

import dataclasses
import getpass
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_runs import (
    WINDOWS,
    Files,
    Result,
    assert_says_nothing_about_the_machine,
    overlap,
    words,
)
from safetensors import safe_open

from hf_distill import scoring
from hf_distill.tasks.metrics import Metric

FAST = ["--use_cpu", "--latency_samples", "3", "--throughput_samples", "4", *WINDOWS]


@pytest.fixture
def models(files: Files) -> list[str]:
    return [word for role, path in files.models.items() for word in (f"--{role}", path)]


def compare(program: Callable[..., Result], folder: Path, *argv: str) -> tuple[dict, str]:
    result = program("compare", "--output_dir", folder, *argv)
    assert result.status == 0, result.stderr
    return json.loads((folder / "comparison.json").read_text()), result.stdout


def test_everything_is_measured(
    files: Files, models: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    content, shown = compare(program, tmp_path, *models, "--file", files.validation, *FAST)
    predictions = {}
    for role, path in files.models.items():
        folder = tmp_path / "scores" / role
        result = program("evaluate", "--use_cpu", "--model", path, "--file", files.validation,
                         "--output_dir", folder, *WINDOWS)  # fmt: skip
        assert result.status == 0
        evaluation = json.loads((folder / "evaluation.json").read_text())
        predictions[role] = json.loads((folder / "predictions.json").read_text())
        report = content["models"][role]
        assert report["quality"]["f1"] == pytest.approx(evaluation["metrics"]["f1"])
        weights = Path(path) / "model.safetensors"
        with safe_open(weights, framework="numpy") as tensors:
            sizes = [tensors.get_tensor(name).size for name in tensors.keys()]  # noqa: SIM118
        assert report["parameters"] == sum(sizes)
        assert report["size_on_disk"] == weights.stat().st_size
        assert report["stored_as"] == "float32"
        low, high = report["latency"]["quartiles"]
        assert 0 < low <= report["latency"]["median"] <= high
        assert report["latency"]["runs"] == 3
        assert report["throughput"] > 0
        assert report["name"] == role
    teacher = predictions["teacher"]
    assert "agreement" not in content["models"]["teacher"]
    for role in ("student_alone", "student_distilled"):
        pairs = [(predictions[role][name], teacher[name]) for name in teacher]
        agreement = content["models"][role]["agreement"]
        same = [words(one) == words(other) for one, other in pairs]
        assert agreement["identical"] == pytest.approx(sum(same) / len(same))
        shared = [overlap(*pair) for pair in pairs]
        assert agreement["f1"] == pytest.approx(sum(shared) / len(shared))
    teacher_f1, alone, distilled = (content["models"][r]["quality"]["f1"] for r in files.models)
    if teacher_f1 > alone:
        share = (distilled - alone) / (teacher_f1 - alone)
        assert content["gap_closed"]["f1"] == pytest.approx(share)
    else:
        assert "f1" not in content["gap_closed"]
    assert content["data"] == {"name": "validation.json", "examples": 8}

    markdown = (tmp_path / "comparison.md").read_text()
    for role in files.models:
        f1 = f"{content['models'][role]['quality']['f1']:.2f}"
        assert f1 in markdown and f1 in shown
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert_says_nothing_about_the_machine(
        tmp_path, str(tmp_path), str(files.folder), platform.node() or "/", f"/{getpass.getuser()}"
    )


def test_seeds_are_averaged_and_noise_is_named(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    alone, distilled = (files.models[f"student_{role}"] for role in ("alone", "distilled"))
    none = ["--use_cpu", "--latency_samples", "0", "--throughput_samples", "0", *WINDOWS]
    data = ["--file", files.validation, *none]
    by_seed = [
        compare(program, tmp_path / str(i), "--student_alone", seed, "--student_distilled",
                distilled, *data)[0]["models"]["student_alone"]
        for i, seed in enumerate((alone, distilled))
    ]  # fmt: skip
    content, shown = compare(
        program, tmp_path / "both", "--student_alone", alone, distilled, "--student_distilled",
        distilled, *data,
    )  # fmt: skip
    both = content["models"]["student_alone"]
    assert both["seeds"] == 2 and "seeds" in shown
    f1 = [one["quality"]["f1"] for one in by_seed]
    assert both["quality"]["f1"] == pytest.approx(sum(f1) / 2)
    low, high = both["intervals"]["f1"]
    assert low <= both["quality"]["f1"] <= high
    # A model does not differ from itself.
    (same, _) = (
        one for one in json.loads((tmp_path / "1" / "comparison.json").read_text())["differences"]
    )
    assert (same["value"], same["interval"], same["is_noise"]) == (0, [0, 0], True)
    assert "within noise" in (tmp_path / "1" / "comparison.md").read_text()


def test_what_is_not_measured_is_absent(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    argv = ["--student_alone", files.models["student_alone"], "--file", files.validation]
    argv += ["--student_distilled", files.models["student_distilled"], "--use_cpu", *WINDOWS]
    none = ["--latency_samples", "0", "--throughput_samples", "0"]
    content, shown = compare(program, tmp_path, *argv, *none)
    assert list(content["models"]) == ["student_alone", "student_distilled"]
    for report in content["models"].values():
        assert not {"latency", "throughput", "agreement"} & report.keys()
    assert content["gap_closed"] == {}
    for text in (shown, (tmp_path / "comparison.md").read_text()):
        assert "latency" not in text and "same answer" not in text
        assert "not known without the teacher" in text


def test_models_without_a_role_are_called_by_their_names(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    teacher, alone, distilled = files.models.values()
    none = ["--latency_samples", "0", "--throughput_samples", "0", "--max_eval_samples", "4"]
    models = ["--teacher", teacher, "--models", alone, distilled, alone]
    options = ["--file", files.validation, "--use_cpu", *WINDOWS, *none]
    content, _ = compare(program, tmp_path, *models, *options)
    names = ["teacher", "student_alone (1)", "student_distilled", "student_alone (3)"]
    assert [model["name"] for model in content["models"].values()] == names
    header, *_ = (tmp_path / "comparison.md").read_text().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["", *names]


def test_model_agrees_with_itself(
    files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    teacher = files.models["teacher"]
    argv = ["--teacher", teacher, "--student_distilled", teacher, "--file", files.validation]
    content, _ = compare(program, tmp_path, *argv, *FAST, "--max_eval_samples", "4")
    agreement = content["models"]["student_distilled"]["agreement"]
    assert agreement == {"identical": 1.0, "f1": 1.0}
    assert content["data"]["examples"] == 4


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["TEACHER", "TEACHER"], ["is neither an option", "Did you mean --models /"]),
        (["--teacher", "TEACHER"], ["at least two models", "--student_alone"]),
        (["--teacher", "TEACHER", "--student_alone", "/no/where"], ["--student_alone /no/where"]),
        (["--teacher", "TEACHER", "--student_alone", "TEACHER", "--latency_samples", "-1"],
         ["--latency_samples -1"]),
        (["--teacher", "TEACHER", "--student_alone", "TEACHER", "--file", "no.json"],
         ["--file no.json"]),
    ],
)  # fmt: skip
def test_bad_requests(
    argv: list[str],
    fragments: list[str],
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    known = {"TEACHER": files.models["teacher"]}
    words_ = [known.get(word, word) for word in argv]
    result = program("compare", "--file", files.validation, "--output_dir", tmp_path, *words_)
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr
    assert not list(tmp_path.iterdir())


def test_several_processes_are_refused(
    files: Files,
    models: list[str],
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = program("compare", *models, "--file", files.validation)
    assert result.status == 2
    assert "WORLD_SIZE=2" in result.stderr and "hf-distill compare" in result.stderr


def test_blank_questions_and_contexts_are_timed(
    files: Files, models: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    impossible: dict[str, list] = {"text": [], "answer_start": []}
    texts = [("who?", "rome is on the tiber."), (" ", "rome"), ("who?", "  "), ("who?", "")]
    rows = [
        {"id": str(i), "question": question, "context": context, "answers": impossible}
        for i, (question, context) in enumerate(texts)
    ]
    data = tmp_path / "blank.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    content, _ = compare(program, tmp_path / "out", *models, "--file", str(data), *FAST)
    for report in content["models"].values():
        assert report["latency"]["runs"] == 3 and report["throughput"] > 0


def test_scores_outlive_a_failure_of_the_timing(
    files: Files,
    models: list[str],
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = [*models, "--file", files.validation, *FAST]
    wanted, _ = compare(program, tmp_path / "whole", *options)

    def failing(*_: object) -> dict:
        raise OSError("out of memory")

    monkeypatch.setattr("hf_distill.reports.measurements.measure_latencies", failing)
    result = program("compare", "--output_dir", tmp_path / "cut", *options)
    assert result.status == 2
    assert "out of memory" in result.stderr and "scores and sizes were kept" in result.stderr
    assert {"comparison.json", "comparison.md"} <= {p.name for p in (tmp_path / "cut").iterdir()}
    content = json.loads((tmp_path / "cut" / "comparison.json").read_text())
    for role, report in content["models"].items():
        for key in ("quality", "agreement", "size_on_disk"):
            assert report.get(key) == wanted["models"][role].get(key)
        assert "latency" not in report
        f1 = f"F1 {report['quality']['f1']:.2f}"
        assert f1 in result.stderr  # as soon as it is known


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_a_folder_that_cannot_be_written_is_found_before_scoring(
    command: str, files: Files, models: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    (tmp_path / "taken").write_text("a file")
    chosen = models if command == "compare" else ["--model", files.models["teacher"]]
    options = ["--file", files.validation, "--output_dir", str(tmp_path / "taken")]
    result = program(command, *chosen, *options, *WINDOWS, "--use_cpu")
    assert result.status == 2
    assert "taken" in result.stderr and "Scoring" not in result.stderr


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("metrics.json", "results of `hf-distill train` (metrics.json)"),
        ("shrink.json", "results of `hf-distill shrink` (shrink.json)"),
        ("sweep.json", "results of `hf-distill sweep` (sweep.json)"),
        ("report.md", "holds other files (report.md) and no comparison.json"),
    ],
)
@pytest.mark.parametrize("compared", [False, True], ids=["", "compared"])
def test_only_a_comparison_is_replaced(
    there: str,
    named: str,
    *,
    compared: bool,
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    argv = [*three_models(files), "--output_dir", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    if compared:
        assert program("compare", *argv).status == 0
        assert program("compare", *argv).status == 0
    (tmp_path / "out" / there).write_text("mine")
    result = program("compare", *argv)
    if compared and there == "report.md":
        assert result.status == 0
    else:
        assert result.status == 2 and named in result.stderr and "Scoring" not in result.stderr
        assert (tmp_path / "out" / there).read_text() == "mine"


def scored_with(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, scoring.Scores], scoring.Scores]
) -> None:
    """Change what the models score, by their place in the order of scoring."""
    score, calls = scoring.score_model, itertools.count()
    monkeypatch.setattr(
        scoring, "score_model", lambda *args, **kwargs: change(next(calls), score(*args, **kwargs))
    )


def three_models(files: Files) -> list[str]:
    """A teacher, a student alone with two seeds, and a distilled student, not timed."""
    teacher, alone, distilled = files.models.values()
    models = ["--teacher", teacher, "--student_alone", alone, distilled]
    none = ["--use_cpu", "--latency_samples", "0", "--throughput_samples", "0"]
    return [*models, "--student_distilled", distilled, "--file", files.validation, *none, *WINDOWS]


def test_seeds_scored_by_different_metrics_are_compared_by_those_they_share(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = compare(program, tmp_path / "whole", *three_models(files))

    def change(place: int, scores: scoring.Scores) -> scoring.Scores:
        if place != 2:  # the second seed of the student alone has no exact match
            return scores
        scorer, name = scores.scorer, "exact_match"
        replicates = {one: of for one, of in scorer.replicates().items() if one != name}
        quality = {one: label for one, label in scorer.measures.quality.items() if one != name}
        monkeypatch.setattr(scorer, "replicates", lambda: replicates)
        monkeypatch.setattr(scorer, "measures", scorer.measures._replace(quality=quality))
        kept = {one: value for one, value in scores.metrics.items() if one != name}
        return dataclasses.replace(scores, metrics=kept)

    scored_with(monkeypatch, change)
    content, shown = compare(program, tmp_path / "some", *three_models(files))
    for role, report in content["models"].items():
        before = whole["models"][role]
        assert report["quality"]["f1"] == before["quality"]["f1"]
        assert report["intervals"]["f1"] == before["intervals"]["f1"]
        assert ("exact_match" in report["quality"]) == (role != "student_alone")
        assert ("exact_match" in report["intervals"]) == (role != "student_alone")
    assert {one["metric"] for one in content["differences"]} == {"f1"}
    assert "F1" in shown and "exact match" not in shown


def test_rows_that_do_not_pair_have_no_interval(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = compare(program, tmp_path / "whole", *three_models(files))
    assert whole["differences"] and all(m["intervals"] for m in whole["models"].values())

    def change(place: int, scores: scoring.Scores) -> scoring.Scores:
        if place == 0:  # the teacher's tokenizer left out a row
            whole_metric = scores.scorer.metric
            assert whole_metric is not None
            fewer = Metric(
                whole_metric.rows - 1, lambda weights: whole_metric.weighted(np.append(weights, 0))
            )
            monkeypatch.setattr(scores.scorer, "metric", fewer)
        return scores

    scored_with(monkeypatch, change)
    content, _ = compare(program, tmp_path / "other", *three_models(files))
    assert content["differences"] == [] and content["gap_closed_intervals"] == {}
    for role, report in content["models"].items():
        assert "intervals" not in report
        assert report["quality"] == whole["models"][role]["quality"]
        assert report["seeds"] == whole["models"][role]["seeds"]


def test_without_matplotlib_the_page_has_no_pictures_and_the_extra_is_named(
    files: Files, tmp_path: Path, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = program("compare", "--output_dir", tmp_path / "out", *three_models(files))
    assert result.status == 0
    assert not (tmp_path / "out" / "comparison.png").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" not in page and "hf-distill[plots]" in page
    assert 'matplotlib is not installed: pip install "hf-distill[plots]"' in result.stderr
