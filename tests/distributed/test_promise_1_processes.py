"""Promise 1 of the design over two processes, and that they stay alike (promise 3)."""

from __future__ import annotations

from typing import Any

import pytest
from launch import LOSSES, Results, run
from zoo import PAIRS

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    f"{task}/{architecture}": {
        "task": task,
        "architecture": architecture,
        "distillation_loss_weight": 0.3,
    }
    for task, architecture in dict(PAIRS).items()
}
CASES["a loss of one's own"] = {
    "task": "token-classification",
    "architecture": "bert",
    "distillation_loss_weight": 0.3,
    "own_loss": True,
}
_INTERMEDIATE: dict[str, dict[str, Any]] = {
    "narrower": {"architecture": "bert", "attention_loss": "scores",
                 "student": {"hidden_size": 8}},
    "relations": {"architecture": "bert", "attention_loss": "relations",
                  "student": {"num_attention_heads": 4}},
    "probabilities": {"architecture": "gpt2", "attention_loss": "probabilities"},
    "attention alone": {"architecture": "modernbert", "attention_loss": "scores",
                        "hidden_states_loss_weight": 0.0},
    "auto": {"architecture": "bert", "attention_loss": "scores", "layer_mapping": "auto"},
    "full maps": {"architecture": "mpnet", "attention_loss": "probabilities_mse"},
    "mixed in": {"architecture": "bert", "student": {"hidden_size": 8}, "stage": "prediction",
                 "hidden_states_loss_weight": 0.5, "attention_loss_weight": 0.5,
                 "distillation_loss_weight": 0.5},
}  # fmt: skip
_CACHED = ("question-answering", "token-classification", "text-generation", "summarization")
CASES |= {
    f"{task}/{architecture}, cached": {**CASES[f"{task}/{architecture}"], "cached": True}
    for task, architecture in dict(PAIRS).items()
    if task in _CACHED
}
CASES |= {
    name: {"task": "text-classification", "stage": "intermediate", **case}
    for name, case in _INTERMEDIATE.items()
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process, all 16 rows at once."""
    directory = tmp_path_factory.mktemp("1x16")
    return run(directory, CASES, processes=1, batch=16, accumulation=1)[0]


@pytest.fixture(scope="module", params=[(8, 1), (4, 2)], ids=["2 x 8", "2 x 4 x 2"])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Results]:
    """Two processes, in one launch for all cases."""
    batch, accumulation = request.param
    directory = tmp_path_factory.mktemp(f"2x{batch}x{accumulation}")
    return run(directory, CASES, processes=2, batch=batch, accumulation=accumulation)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split(
    case: str, whole: Results, ranks: list[Results]
) -> None:
    one, two = whole[case], [rank[case] for rank in ranks]
    assert [rank["processes"] for rank in two] == [2, 2]
    for name in LOSSES:
        assert two[0][name] == pytest.approx(one[name], rel=1e-5), name
    for rank in two:
        assert rank["norms"] == pytest.approx(one["norms"], rel=1e-5)
        for weights in ("weights", "projections"):
            assert rank[weights] == pytest.approx(one[weights], rel=1e-5, abs=1e-5)
        assert rank["teacher_class"] == one["teacher_class"]  # not wrapped in DDP
    assert two[0]["weights"] == two[1]["weights"]
    assert bool(one["projections"]) == (case in ("narrower", "mixed in"))


@pytest.mark.parametrize("case", _INTERMEDIATE)
def test_intermediate_losses_were_there_at_all(case: str, whole: Results) -> None:
    found = {name for name in LOSSES if whole[case][name]}
    expected = {"loss", "loss_hidden_states", "loss_attention"}
    if case == "mixed in":
        expected = set(LOSSES)
    if case == "attention alone":
        expected -= {"loss_hidden_states"}
    assert found == expected


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(", cached")])
def test_cached_outputs_are_those_of_the_live_teacher(case: str, whole: Results) -> None:
    live = whole[case.removesuffix(", cached")]
    for name in LOSSES:
        assert whole[case][name] == pytest.approx(live[name], rel=1e-5), name
    assert whole[case]["norms"] == pytest.approx(live["norms"], rel=1e-5)
    assert whole[case]["teacher_class"] == "NoneType"
