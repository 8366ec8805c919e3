"""Whatever the cells of a label column are: no class changes, none is added, or all is refused."""

from __future__ import annotations

import csv
import itertools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from any_task import classification_rows
from cli_runs import Result
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_runs import save_model
from transformers import AutoConfig

from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.label_choice import choose_labels
from hf_distill.tasks.labels import LabelMap, data_labels
from hf_distill.tasks.tables import load_table
from hf_distill.tasks.text_classification import data_problem_type

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
NO_NUMBER = {"NaN", "nan", "NA", "<NA>", "null", "None"}
# Cells that are near each other, so that they meet.
GROUPS = (
    ["0", "1", "2", "10", " 1"], ["1", "01", "007", "7", "-0", "+1"], ["0.0", "1.0", "1", "2"],
    ["1", "2", "-1"], ["1.10", "0.5", "1", "1.5"], ["1e3", "2e3", "12:30", "2024-01-01"],
    ["12345678901234567890", "1", "2"], ["NA", "nan", "1", "2"], ["NA", "null", "a", "true"],
    ["pos", " pos", "pos ", "neg"], ["pos", "Pos", "neg"], ["a b", "ab", "c"], ["", "  ", "a", "b"],
    ["[1, 0]", "[0]", "a"], ["1\u0661", "11", "1", "1_1"], ["\u00e9", "e\u0301", "e"],
    ["\ufeffpos", "pos", "neg"], ["x\ny", "a, b", '"q"', "a"],
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SOME = st.one_of(st.sampled_from(GROUPS), st.lists(TEXT, min_size=2, max_size=4))
LABELS = SOME.flatmap(lambda some: st.lists(st.sampled_from(some), min_size=2, max_size=8))


def write(path: Path, labels: list[str]) -> Path:
    """Write a table without the package."""
    rows = [(f"text {n}", label) for n, label in enumerate(labels)]
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
        elif path.suffix == ".tsv":
            file.writelines("\t".join(row) + "\n" for row in [("text", "label"), *rows])
        else:
            file.writelines(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows)
    if path.suffix == ".parquet":
        Dataset.from_dict({"text": [t for t, _ in rows], "label": labels}).to_parquet(path)
    return path


def whole(cell: str) -> str | None:
    """A whole number as it is written without decimals; ``None`` for anything else."""
    head, dot, tail = cell.partition(".")
    if (dot and set(tail) != {"0"}) or not re.fullmatch("-?[0-9]+", head, re.ASCII):
        return None
    return head if str(int(head)) == head and abs(int(head)) < 2**63 else None


def expected(labels: list[str]) -> list[str] | None:
    """The class of each row, in plain Python; ``None`` if they must be refused."""
    cells = [label.strip() for label in labels]
    numbers = [cell for cell in cells if cell not in NO_NUMBER]
    shown = ["".join(filter(str.isprintable, cell)).strip() for cell in cells]
    if "" in shown or all(cell.startswith("[") and cell.endswith("]") for cell in cells):
        return None
    if numbers and all(map(whole, numbers)):
        classes = [whole(cell) or "" for cell in cells]
        if "" in classes or any(name.startswith("-") for name in classes):
            return None
    elif any("." in cell for cell in numbers) and all(
        re.fullmatch(r"-?(0|[1-9][0-9]*)([.][0-9]+)?(e[+-]?[0-9]+)?", cell, re.I | re.ASCII)
        for cell in numbers
    ):
        return None  # numbers to predict, or a question
    else:
        classes = cells
        if len({"".join(name.split()).casefold() for name in cells}) < len(set(cells)):
            return None
    return classes if len(set(classes)) > 1 else None


def found(path: Path) -> list[str] | None:
    """The class of each row as a model would learn it."""
    rows = classification_rows(load_table(path))
    if data_problem_type(rows) == "regression":
        return None
    names = choose_labels(data_labels(rows, "label")).names
    classes = [names[number] for number in LabelMap(names, rows, "label").all_numbers()]
    assert set(names) == set(classes) and len(names) == len(set(names))
    return classes


def check(labels: list[str], ending: str) -> None:
    """Compare with ``expected``."""
    if ending == ".tsv":
        labels = [re.sub("[\t\r\n]", "", label) for label in labels]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"d{ending}", labels)
        try:
            classes = found(path)
        except TaskDataError as error:
            # Characters that cannot be seen: another reason to refuse, with both names.
            assert "differ only" in str(error) or expected(labels) is None, str(error)
        else:
            assert classes == expected(labels)


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_cells_that_are_near_each_other(group: list[str]) -> None:
    for pair in itertools.combinations(group, 2):
        check([*pair, pair[0]], ".csv")
    check(group, ".jsonl")


@settings(max_examples=100, deadline=None)
@given(labels=LABELS, ending=st.sampled_from(ENDINGS))
def test_any_labels(labels: list[str], ending: str) -> None:
    check(labels, ending)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("student") / "s", "text-classification")


@settings(
    max_examples=4, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)  # fmt: skip
@given(labels=LABELS.filter(expected), endings=st.permutations(ENDINGS))
def test_trained_saved_and_evaluated(
    labels: list[str], endings: list[str], student: str, program: Callable[..., Result]
) -> None:
    """Also scored on the same cells in another kind of file."""
    labels = [re.sub("[\t\r\n]", "", label) for label in labels]
    classes = expected(labels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, dev = (write(folder / f"d{ending}", labels) for ending in endings[:2])
        result = program(
            "train", "--task", "text-classification", "--student_model", student, "--baseline",
            "--train_file", train, "--validation_file", train, "--max_steps", "2", "--use_cpu",
            "--disable_tqdm", "true", "--save_strategy", "no", "--output_dir", folder / "out",
        )  # fmt: skip
        if classes is None or "differ only" in result.stderr:
            assert result.status == 2
            return
        assert result.status == 0, result.stderr
        names = AutoConfig.from_pretrained(folder / "out").id2label
        assert sorted(names.values()) == sorted(set(classes))
        scores: list[dict[str, Any]] = [
            json.loads((folder / "out/metrics.json").read_text())["eval"]
        ]
        result = program("evaluate", "--model", folder / "out", "--file", dev, "--use_cpu",
                         "--output_dir", folder / "scores")  # fmt: skip
        assert result.status == 0, result.stderr
        scores.append(json.loads((folder / "scores/evaluation.json").read_text())["metrics"])
        predicted = json.loads((folder / "scores/predictions.json").read_text())
        right = sum(one == other for one, other in zip(predicted, classes, strict=True))
        for one in scores:
            assert one["accuracy"] == pytest.approx(100 * right / len(classes))
