"""Rows where a student and its teacher differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hf_distill.reports.disagreements import OUTCOMES, find_disagreements
from hf_distill.tasks.base import ScoredRow

LABELS = st.sampled_from(["x", "y", "z"])


def rows(gold: list[str], predicted: list[str]) -> list[ScoredRow]:
    triples = zip(gold, predicted, strict=True)
    return [ScoredRow(f"t{n}", g, p, g == p) for n, (g, p) in enumerate(triples)]


@given(st.lists(st.tuples(LABELS, LABELS, LABELS), min_size=1, max_size=40))
def test_counts_and_rows_are_exact(triples: list[tuple[str, str, str]]) -> None:
    gold, ours, theirs = (list(column) for column in zip(*triples, strict=True))
    found = find_disagreements(rows(gold, ours), rows(gold, theirs))
    assert found is not None
    wanted = {
        "both_right": [n for n, (g, o, t) in enumerate(triples) if o == g and t == g],
        "teacher_right": [n for n, (g, o, t) in enumerate(triples) if o != g and t == g],
        "model_right": [n for n, (g, o, t) in enumerate(triples) if o == g and t != g],
        "both_wrong": [n for n, (g, o, t) in enumerate(triples) if o != g and t != g],
    }
    assert found.counts == {outcome: len(places) for outcome, places in wanted.items()}
    for outcome in OUTCOMES:
        differing = [n for n in wanted[outcome] if ours[n] != theirs[n]]
        assert [one.row for one in found.differing[outcome]] == differing
        for one in found.differing[outcome]:
            assert (one.text, one.gold) == (f"t{one.row}", gold[one.row])
            assert (one.teacher, one.model) == (theirs[one.row], ours[one.row])
    shown = found.examples(3)
    assert all(0 < len(some) <= 3 for some in shown.values())
    for outcome, some in shown.items():
        places = [one.row for one in some]
        assert places == sorted(set(places))
        assert {*places} <= {one.row for one in found.differing[outcome]}


def test_other_rows_are_not_compared() -> None:
    assert find_disagreements([], []) is None
    ours, theirs = rows(["x"], ["x"]), rows(["x", "y"], ["x", "y"])
    assert find_disagreements(ours, theirs) is None
    assert find_disagreements(ours, [theirs[0]._replace(text="another")]) is None
