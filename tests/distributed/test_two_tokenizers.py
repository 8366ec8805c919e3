"""Promise 1 of the design for teachers with another tokenizer: micro-batches and two processes."""

from __future__ import annotations

from typing import Any

import pytest
from launch import LOSSES, Results, run

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    f"{setting}, {kind}": {"setting": setting, "cached": kind == "cached"}
    for setting in ("labels", "questions", "words", "chunks", "pieces")
    for kind in ("live", "cached")
}
SPLITS = {"1 x 2 x 4": (1, 2, 4), "2 x 4": (2, 4, 1), "2 x 2 x 2": (2, 2, 2)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process, all rows at once."""
    directory = tmp_path_factory.mktemp("1x8")
    return run(directory, CASES, processes=1, batch=8, accumulation=1, script="two_tokenizers.py")[
        0
    ]


@pytest.fixture(scope="module", params=SPLITS.values(), ids=[*SPLITS])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Results]:
    processes, batch, accumulation = request.param
    return run(
        tmp_path_factory.mktemp("split"),
        CASES,
        processes=processes,
        batch=batch,
        accumulation=accumulation,
        script="two_tokenizers.py",
    )


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(
    case: str, whole: Results, ranks: list[Results]
) -> None:
    one, several = whole[case], [rank[case] for rank in ranks]
    assert one["aligned"] and one["loss_prediction"][0] > 0
    assert {rank["processes"] for rank in several} == {len(ranks)}
    for name in LOSSES:
        assert several[0][name] == pytest.approx(one[name], rel=1e-5), name
    for rank in several:
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert rank["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-5)
    assert several[0]["weights"] == several[-1]["weights"]


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(", cached")])
def test_cached_outputs_are_those_of_the_live_teacher(case: str, whole: Results) -> None:
    live = whole[case.replace("cached", "live")]
    assert whole[case]["loss_prediction"] == pytest.approx(live["loss_prediction"], rel=1e-4)
    assert whole[case]["norms"] == pytest.approx(live["norms"], rel=1e-4)
