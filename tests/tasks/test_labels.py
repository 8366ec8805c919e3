from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_distill.tasks.errors import TaskDataError
from hf_distill.tasks.label_choice import choose_labels
from hf_distill.tasks.labels import (
    DataLabels,
    LabelMap,
    check_numbering,
    data_labels,
    label_agreement,
    label_options,
    model_labels,
    positive_label,
    unnamed,
)


def column(values: list[Any], feature: Any = None) -> Dataset:
    features = None if feature is None else Features({"label": feature})
    return Dataset.from_dict({"label": values}, features=features)


def config(*names: str) -> Any:
    return SimpleNamespace(**label_options(names))


@pytest.mark.parametrize(
    ("table", "names", "count"),
    [
        (column(["b", "a", "c", "a"]), ("a", "b", "c"), None),
        (column([1, 0, 1]), ("0", "1"), 2),
        (column([0, 3]), ("0", "3"), 4),
        (column([5, 1, 10]), ("1", "5", "10"), None),
        (column([True, False]), ("False", "True"), None),
        (column([0, 1], ClassLabel(names=["z", "a"])), ("z", "a"), None),
        (column([0, 1], ClassLabel(names=["0", "1", "2"])), ("0", "1", "2"), 3),
        (column([["b"], [], ["a", "b"]]), ("a", "b"), None),
        (column([[0], [2, 1]]), ("0", "1", "2"), 3),
        (column([[0], [1]], List(ClassLabel(names=["O", "B"]))), ("O", "B"), None),
    ],
)
def test_labels_of_the_data(table: Dataset, names: tuple[str, ...], count: int | None) -> None:
    found = data_labels(table, "label")
    assert (found.names, found.count) == (names, count)


@pytest.mark.parametrize("order", list(itertools.permutations(("red", "green", "blue"))))
def test_each_label_reaches_its_number_in_every_order(order: tuple[str, ...]) -> None:
    for table in (
        column(["blue", "red", "green", "red"]),
        column(["Blue", "RED", "green", "red"]),
        column([0, 2, 1, 2], ClassLabel(names=["blue", "green", "red"])),
    ):
        expected = [order.index(name) for name in ("blue", "red", "green", "red")]
        assert LabelMap(order, table, "label").all_numbers() == expected


def test_numbers_are_names_before_they_are_numbers() -> None:
    stars = column([1, 5, 2])
    assert LabelMap(("5", "2", "1"), stars, "label").all_numbers() == [2, 0, 1]
    assert LabelMap(("neg", "pos"), column([1, 0]), "label").all_numbers() == [1, 0]
    assert LabelMap(unnamed(2), column([1, 0]), "label").all_numbers() == [1, 0]


@pytest.mark.parametrize(
    "names", [("01", "02"), ("1 star", "2 stars"), ("b1", "b0"), ("neg", "pos"), ("a", "b")]
)
def test_codes_never_become_places(names: tuple[str, ...]) -> None:
    for code in ("01 ", "1e0", "007", "one"):
        if code.strip() not in names:
            with pytest.raises(TaskDataError, match="none of the model's labels"):
                LabelMap(names, column([code]), "label").all_numbers()
    if any(any(letter.isdigit() for letter in name) for name in names):
        with pytest.raises(TaskDataError, match="Row 0 has the label 1"):
            LabelMap(names, column([1, 0]), "label").all_numbers()


def test_names_are_found_but_for_case_and_spaces_where_that_is_clear() -> None:
    table = column(["Sci / Tech", "B"])
    assert LabelMap(("b", "Sci/Tech"), table, "label").all_numbers() == [1, 0]
    assert LabelMap(("b", "B"), column(["b", "B"]), "label").all_numbers() == [0, 1]
    with pytest.raises(TaskDataError, match="'neG'"):
        LabelMap(("neg", "Neg"), column(["neG"]), "label").all_numbers()


def test_class_label_numbers_stand_where_the_model_has_no_names() -> None:
    table = column([1, 0], ClassLabel(names=["neg", "pos"]))
    assert LabelMap(unnamed(2), table, "label").all_numbers() == [1, 0]
    with pytest.raises(TaskDataError, match="'pos'"):
        LabelMap(("bad", "good"), table, "label").all_numbers()
    with pytest.raises(TaskDataError, match="'pos'"):
        LabelMap(unnamed(2), column(["pos"]), "label").all_numbers()


def test_lists_keep_their_form() -> None:
    table = column([["b"], [], ["a", "b"]])
    assert LabelMap(("b", "a"), table, "label").all_numbers() == [[0], [], [1, 0]]


CLASSES = ClassLabel(names=["neg", "pos"])


@pytest.mark.parametrize(
    ("table", "teacher", "student", "same"),
    [
        (column(["neg", "pos"]), ("neg", "pos"), ("pos", "neg", "neu"), [(0, 1), (1, 0)]),
        (
            column(["neg", "pos"]),
            ("x", "neg", "POS"),
            ("Pos", "neg", "X"),
            [(0, 2), (1, 1), (2, 0)],
        ),
        (column(["not good", "ok"]), ("not good", "ok"), ("ok", "notgood"), [(0, 1), (1, 0)]),
        (column(["b", "B"]), ("b", "B"), ("B", "b", "c"), [(0, 1), (1, 0)]),
        (column([0, 1]), ("neg", "pos"), ("bad", "good", "so-so"), [(0, 0), (1, 1)]),
        (column([0, 1]), unnamed(3), ("neg", "pos", "neu"), [(0, 0), (1, 1), (2, 2)]),
        (column([1, 5]), ("1", "5"), ("5", "2", "1"), [(0, 2), (1, 0)]),
        (column([0, 1]), unnamed(2), ("1", "0"), [(0, 1), (1, 0)]),
        (column([0, 1], CLASSES), unnamed(2), ("pos", "neg"), [(0, 1), (1, 0)]),
        (column([[0], [1]], List(CLASSES)), unnamed(2), ("pos", "neg"), [(0, 1), (1, 0)]),
    ],
)
def test_predictions_are_compared_by_what_they_mean_in_the_data(
    table: Dataset,
    teacher: tuple[str, ...],
    student: tuple[str, ...],
    same: list[tuple[int, int]],
) -> None:
    meanings = [LabelMap(names, table, "label").meanings() for names in (teacher, student)]
    for one, other in itertools.product(range(len(teacher)), range(len(student))):
        found = label_agreement((meanings[1], [other]), (meanings[0], [one]))
        assert found == ((one, other) in same)
        assert found == label_agreement((meanings[1], [[other]]), (meanings[0], [[one]]))


@pytest.mark.parametrize("other", [("pos", "neg"), ("Pos", "neg", "neu"), ("x", "neg")])
def test_numbers_that_two_models_name_differently_are_refused(other: tuple[str, ...]) -> None:
    models = {"one": config("neg", "pos"), "same": config("neg", "pos"), "two": config(*other)}
    with pytest.raises(TaskDataError, match="one and two number the same names differently"):
        check_numbering(column([0, 1]), "label", models)
    for table in (column(["neg", "pos"]), column([0, 1], CLASSES)):
        check_numbering(table, "label", models)
    models["two"] = config("bad", "good", "pos\u2019")
    check_numbering(column([0, 1]), "label", models)


NAMED = DataLabels(("neg", "pos"))
BARE = DataLabels(("0", "1"), 2)
GAP = DataLabels(("0", "3"), 4)
VECTORS = DataLabels(("0", "1"), 2, exact=True)


@pytest.mark.parametrize(
    ("labels", "student", "teacher", "names", "said"),
    [
        (NAMED, None, None, ("neg", "pos"), None),
        (NAMED, config("LABEL_0", "LABEL_1"), None, ("neg", "pos"), None),
        (NAMED, config("pos", "neg"), None, ("pos", "neg"), "in its own order"),
        (NAMED, config("POS", "NEG"), None, ("POS", "NEG"), "in its own order"),
        (NAMED, config("neg", "pos"), config("pos", "neg"), ("neg", "pos"), "keeps them"),
        (NAMED, None, config("pos", "neg"), ("neg", "pos"), None),
        (NAMED, config("entailment", "other"), None, ("neg", "pos"), None),
        (NAMED, None, config("pos", "neu", "neg"), ("pos", "neu", "neg"), "lacks labels"),
        (BARE, None, None, ("0", "1"), None),
        (BARE, None, config("no", "yes"), ("no", "yes"), "taken from the teacher: no, yes"),
        (BARE, None, config("a", "b", "c"), ("a", "b", "c"), "taken from the teacher"),
        (BARE, None, config("LABEL_0", "LABEL_1"), unnamed(2), None),
        (BARE, config("x", "y"), None, ("x", "y"), "keeps its names"),
        (BARE, config("x", "y", "z"), None, ("x", "y", "z"), "keeps its names"),
        (BARE, config("x", "y", "z"), config(*unnamed(3)), ("x", "y", "z"), "keeps its names"),
        (BARE, config("x", "y", "z"), config(*unnamed(2)), unnamed(2), None),
        (BARE, config(*unnamed(3)), None, ("0", "1"), None),
        (BARE, config("01", "02", "03"), None, ("0", "1"), None),
        (GAP, config("x", "y", "z"), None, ("0", "3"), None),
        (GAP, config(*"vwxyz"), None, tuple("vwxyz"), "keeps its names"),
        (VECTORS, config("x", "y", "z"), None, ("0", "1"), None),
        (BARE, None, config(*unnamed(3)), unnamed(3), None),
        (GAP, None, None, ("0", "3"), None),
        (GAP, None, config("a", "b"), ("0", "3"), None),
        (GAP, None, config("a", "b", "c", "d"), ("a", "b", "c", "d"), "from the teacher"),
        (VECTORS, None, config("a", "b", "c"), ("0", "1"), None),
        (VECTORS, None, config("b", "a"), ("b", "a"), "from the teacher"),
        (BARE, config("x", "y"), config("no", "yes"), ("no", "yes"), "from the teacher"),
    ],
)
def test_labels_of_a_student(
    labels: DataLabels, student: Any, teacher: Any, names: tuple[str, ...], said: str | None
) -> None:
    choice = choose_labels(labels, student, teacher)
    assert choice.names == names
    assert choice.why is None if said is None else said in str(choice.why)


def test_bare_numbers_with_two_meanings_are_refused() -> None:
    with pytest.raises(TaskDataError, match="Write the names"):
        choose_labels(BARE, config("no", "yes"), config("yes", "no"))


def test_options_of_a_configuration_and_back() -> None:
    options = label_options(("b", "a"))
    assert options == {"num_labels": 2, "id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}
    assert model_labels(SimpleNamespace(**options)) == ("b", "a")


def test_positive_label_does_not_depend_on_the_order_of_the_model() -> None:
    for order in (("neg", "pos"), ("pos", "neg")):
        assert positive_label(order, column(["neg", "pos"]), "label") == "pos"
        table = column([0, 1], ClassLabel(names=["pos", "neg"]))
        assert positive_label(order, table, "label") == "neg"
    assert positive_label(("yes", "no"), column([0, 1]), "label") == "no"
    assert positive_label(("a", "b"), column(["c"], Value("string")), "label") == "b"
