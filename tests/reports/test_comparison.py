from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.reports.comparison import (
    Comparison,
    Latency,
    ModelReport,
)
from hf_distill.reports.layout import lay_out
from hf_distill.reports.pages import write_comparison
from hf_distill.reports.report import Report

LABELS = {"f1": "F1", "exact_match": "exact match"}
PERCENT = st.floats(0, 100).map(lambda x: round(x, 3))


def report(role: str, f1: float = 50.0, exact: float = 40.0, **options: Any) -> ModelReport:
    quality = {"f1": f1, "exact_match": exact}
    return ModelReport(role, f"{role}-model", quality, options.pop("parameters", 10), **options)


def comparison(*models: ModelReport, **options: Any) -> Comparison:
    return Comparison("question-answering", "dev.json", 7, models, LABELS, **options)


def three(teacher: float, alone: float, distilled: float) -> Comparison:
    return comparison(
        report("teacher", teacher), report("student_alone", alone),
        report("student_distilled", distilled),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "alone", "distilled", "share"),
    [
        (83.2, 69.6, 72.8, 3.2 / 13.6),
        (80, 60, 60, 0.0),
        (80, 60, 80, 1.0),
        (80, 60, 90, 1.5),
        (80, 60, 50, -0.5),
        (60, 60, 70, None),
        (50, 60, 70, None),
    ],
)
def test_gap_closed(teacher: float, alone: float, distilled: float, share: float | None) -> None:
    shares = three(teacher, alone, distilled).gap_closed()
    assert shares.get("f1") == (None if share is None else pytest.approx(share))


def test_gap_of_errors_is_closed_downwards() -> None:
    perplexities = dataclasses.replace(three(20, 60, 30), lower_is_better={"f1"})
    assert perplexities.gap_closed()["f1"] == pytest.approx(30 / 40)
    worse = dataclasses.replace(three(60, 20, 30), lower_is_better={"f1"})
    assert "f1" not in worse.gap_closed()


@given(PERCENT, PERCENT, PERCENT)
def test_gap_closed_puts_the_student_where_it_is(
    teacher: float, alone: float, distilled: float
) -> None:
    share = three(teacher, alone, distilled).gap_closed().get("f1")
    if share is None:
        assert teacher <= alone
    else:
        assert alone + share * (teacher - alone) == pytest.approx(distilled, abs=1e-6)


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_gap_needs_all_three(left_out: int) -> None:
    models = [*three(80, 60, 70).models]
    absent = models.pop(left_out)
    partial = comparison(*models)
    assert partial.gap_closed() == {}
    assert absent.role.replace("_", " ") in partial.headline()


def test_headline() -> None:
    assert three(80, 60, 70).headline() == (
        "Distillation closed 50% of the gap in F1; "
        "exact match: no gap, the teacher is not better than the student alone."
    )
    assert three(60, 60, 70).headline().startswith("F1: no gap")
    assert "-50% of the gap in F1 (worse than the student alone)" in three(80, 60, 50).headline()


def test_models_are_checked() -> None:
    with pytest.raises(ValueError, match="at least two"):
        comparison(report("teacher"))
    with pytest.raises(ValueError, match="once"):
        comparison(report("teacher"), report("teacher"))
    with pytest.raises(ValueError, match="'tutor'"):
        report("tutor")


def full() -> Comparison:
    teacher = report(
        "teacher", 80.126, parameters=22_600_000, size_on_disk=45_144_116, stored_as="float16",
        latency=Latency(31.26, (30.0, 33.0), 5), throughput=55.34,
    )  # fmt: skip
    alone = report("student_alone", 60, agreement={"identical": 0.555, "f1": 0.6})
    return comparison(
        teacher, alone, report("student_distilled", 70),
        agreement_labels={"identical": "same answer", "never": "never"},
        settings={"batch size": 16}, machine={"processor": "A|B", "threads": "1"},
    )  # fmt: skip


def test_rows_hold_what_was_measured_and_no_more() -> None:
    rows = dict(full().rows())
    assert rows["F1"] == ["80.13", "60.00", "70.00"]
    assert rows["same answer"] == ["–", "55.5%", "–"]
    assert "never" not in rows
    assert rows["parameters"] == ["22.60 M", "0.00 M", "0.00 M"]
    assert rows["size (float16)"] == ["45.1 MB", "–", "–"]
    assert rows["latency"] == ["31.3 ms", "–", "–"]
    assert rows["  quartiles"] == ["30.0–33.0", "–", "–"]
    assert "  95% interval" not in rows
    assert rows["throughput"] == ["55.3/s", "–", "–"]


def test_a_teacher_without_weights_has_no_size() -> None:
    column = report("teacher", parameters=None)
    found = comparison(column, report("student_alone", parameters=2_000_000))
    assert dict(found.rows())["parameters"] == ["–", "2.00 M"]
    assert found.speed_up() is None
    assert "parameters" not in found.to_dict()["models"]["teacher"]
    formats = [{"stored_as": kind, "size_on_disk": 9_000_000} for kind in ("float16", "float32")]
    students = [report(f"student_{role}", parameters=2_000_000, **stored)
                for role, stored in zip(("alone", "distilled"), formats, strict=True)]  # fmt: skip
    assert dict(comparison(column, *students).rows())["size on disk"] == [
        "–", "9.0 MB (float16)", "9.0 MB"
    ]  # fmt: skip


def test_an_8_bit_export_is_as_large_as_its_file() -> None:
    """It has as many parameters as what it was made of."""
    teacher, export = (
        report(role, parameters=22_600_000, size_on_disk=size, stored_as=kind,
               latency=Latency(ms, (ms, ms), 1))
        for role, size, kind, ms in (
            ("teacher", 90_300_000, "float32", 9.8), ("model_1", 23_500_000, "int8", 2.0),
        )
    )  # fmt: skip
    found = comparison(teacher, export)
    assert dict(found.rows())["size on disk"] == ["90.3 MB", "23.5 MB (int8)"]
    assert str(found.speed_up()).endswith(
        "is 4.9 times as fast as the teacher, at 0.26 × the size on disk."
    )
    tiles = [(tile.value, tile.label) for tile in lay_out(Report("a", comparison=found)).tiles]
    assert tiles[-1] == ("26%", "of the size on disk: 90.3 MB → 23.5 MB (int8)")


def test_markdown_is_one_table() -> None:
    lines = full().to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "|  | teacher | student alone | student distilled |"
    assert len(table) == 2 + len(full().rows())
    assert {line.count(" | ") for line in table} == {3}
    assert "- processor: A|B; threads: 1" in lines
    assert "- dev.json, 7 examples" in lines


def test_bars_in_names_do_not_break_the_table() -> None:
    odd = ModelReport("teacher", "a|b", {"f1": 1.0, "exact_match": 1.0}, 1)
    assert "a\\|b" in comparison(odd, report("student_alone")).to_markdown()


def test_names_and_labels_do_not_become_html() -> None:
    attack = "<img src=x onerror=alert(1)>\n# title"
    odd = ModelReport("teacher", attack, {"f1": 1.0, "exact_match": 1.0}, 1)
    found, plain = (
        comparison(
            one, report("student_alone"), baseline=(what, {"f1": 1.0, "exact_match": 1.0})
        ).to_markdown()
        for one, what in (
            (odd, f"always answering {attack}"),
            (report("teacher"), "always answering x"),
        )
    )
    assert "<" not in found and found.count("\n") == plain.count("\n")
    assert found.count("&lt;img src=x onerror=alert(1)&gt; # title") == 2


def test_of_several_models_one_is_the_subject() -> None:
    models = [
        report(role, latency=Latency(ms, (ms, ms), 1))
        for role, ms in (("teacher", 10.0), ("model_1", 5.0), ("model_2", 1.0))
    ]
    several = comparison(*models)
    assert several.subject == models[1] and "2.0 times as fast" in str(several.speed_up())
    student = dataclasses.replace(models[1], role="student_distilled")
    assert comparison(*models, student).subject == student


def test_written_files(tmp_path: Path) -> None:
    paths = write_comparison(full(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["comparison.json", "comparison.md", "comparison.png"]
    content = json.loads(paths[0].read_text())
    assert content["models"]["teacher"]["latency"] == {
        "median": 31.26, "quartiles": [30.0, 33.0], "runs": 5
    }  # fmt: skip
    assert "latency" not in content["models"]["student_alone"]
    assert content["gap_closed"]["f1"] == pytest.approx(10 / 20.126)
    assert content["machine"]["threads"] == "1"
    assert paths[1].read_text() == full().to_markdown()
