"""The losses of an optimizer step, and what they are means of, against sums written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_distill.step import (
    AlignedLogits,
    BatchPlan,
    LossLog,
    StepLosses,
    WholeSteps,
    count_items,
    count_step,
    prediction_loss,
    weighted_mean,
)

ROWS = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
"""A loss for each of 2 × 2 rows."""
SOME_ROWS = torch.tensor([[True, False], [True, True]])
SOME_CLASSES = torch.tensor([True, True, False])


def processes(number: int) -> Any:
    """Processes with equal numbers."""

    def reduce(values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return values * number

    return SimpleNamespace(num_processes=number, device="cpu", reduce=reduce)


@pytest.mark.parametrize(
    ("classes", "rows", "count", "mask", "expected"),
    [
        (None, None, 4, None, 15 / 4),
        (SOME_CLASSES, None, 4, SOME_CLASSES, 15 / 4),
        (None, SOME_ROWS, torch.tensor(3), SOME_ROWS[..., None], 13 / 3),
        (SOME_CLASSES, SOME_ROWS, 3, SOME_ROWS[..., None] & SOME_CLASSES, 13 / 3),
        (None, ~SOME_ROWS & SOME_ROWS, torch.tensor(0), torch.zeros(2, 2, 1) > 0, 0.0),
    ],
)
def test_the_mean_of_the_rows_that_count(
    classes: Tensor | None, rows: Tensor | None, count: Any, mask: Tensor | None, expected: float
) -> None:
    def by_row(student: Tensor, teacher: Tensor, **given: Any) -> Tensor:
        assert given["temperature"] == 3.0 and student.sum() == 0 and teacher.sum() == 12
        assert (given["mask"] is None) == (mask is None)
        assert mask is None or torch.equal(given["mask"], mask)
        return ROWS

    logits = AlignedLogits(torch.zeros(2, 2, 3), torch.ones(2, 2, 3), classes, rows, count)
    for factor in (1.0, 0.5):
        loss = prediction_loss(logits._replace(factor=factor), by_row, temperature=3.0)
        assert float(loss) == pytest.approx(factor * expected)


@pytest.mark.parametrize(
    ("returned", "shown"), [(torch.zeros(()), r"\(\)"), (torch.zeros(4), r"\(4,\)"), (1.5, "float")]
)
def test_a_loss_function_returns_a_loss_per_row(returned: Any, shown: str) -> None:
    logits = AlignedLogits(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), None, None, 4)
    with pytest.raises(ValueError, match=rf"shape \(2, 2\), but it returned {shown}\."):
        prediction_loss(logits, lambda *args, **kwargs: returned, temperature=1.0)


@pytest.mark.parametrize(
    ("count", "factor", "total", "expected"),
    [
        (3, 1, 1, 6.0),
        (3, 4, 8, 3.0),
        (torch.tensor(3), 4, torch.tensor(8), 3.0),
        (torch.tensor(1), 1, torch.tensor(1), 2.0),
        (torch.tensor(1), 1, 1, 2.0),
    ],
)
def test_a_mean_by_its_share(count: Any, factor: int, total: Any, expected: float) -> None:
    assert float(weighted_mean(torch.tensor(2.0), count, factor, total)) == expected


def test_a_mean_over_nothing_counts_as_0() -> None:
    nothing, loss = torch.tensor(0), torch.tensor(torch.nan)
    assert float(weighted_mean(loss, nothing)) == 0
    assert float(weighted_mean(loss, nothing, 2, nothing)) == 0
    assert float(weighted_mean(loss, nothing, 2, torch.tensor(5))) == 0


def test_counts_that_cannot_be_known_are_left_out() -> None:
    counters: dict[str, Any] = {
        "task": lambda batch: batch["labels"],
        "hidden_states": lambda batch: batch["nothing of this name"],
        "prediction": lambda batch: 7,
    }
    names = ("labels", "more")
    assert count_items(counters, names, {"labels": 3, "more": 1}) == {"task": 3, "prediction": 7}
    assert count_items(counters, names, {"labels": 3, "more": None}) == {"prediction": 7}
    assert count_items(counters, names, {"more": 3}) == {"prediction": 7}


def test_counts_of_a_step() -> None:
    counts = [{"task": 2.5, "prediction": 4}, {"prediction": torch.tensor(3), "task": 1}]
    assert count_step(counts, processes(1)) == {"prediction": 7, "task": 3.5}
    two = count_step(counts, processes(2))
    assert list(two) == ["prediction", "task"]
    assert [float(value) for value in two.values()] == [14, 7]
    assert all(value.dtype == torch.float32 for value in two.values())  # type: ignore[union-attr]
    assert count_step([counts[0], {"prediction": 1}], processes(1)) == {"prediction": 5}


COUNTS = [{"task": 2, "prediction": 4}, {"task": 6, "prediction": 4}]
MEANS = [{"task": 1.0, "prediction": 3.0}, {"task": 5.0, "prediction": 1.0}]
WEIGHTS = {"task": 0.25, "prediction": 0.75}
WHOLE = {"task": (2 * 1.0 + 6 * 5.0) / 8, "prediction": (4 * 3.0 + 4 * 1.0) / 8}


def micro_batches(losses: StepLosses, number: int, items: Any = None) -> list[float]:
    """The losses of both micro-batches of a step."""
    losses.begin_step(COUNTS, processes(number))
    return [
        float(losses.total({n: torch.tensor(v) for n, v in means.items()},
                           BatchPlan(True, 0, dict(counts), WEIGHTS, 1.0), items, 1))
        for counts, means in zip(COUNTS, MEANS, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
def test_micro_batches_add_up_to_the_step(number: int) -> None:
    losses = StepLosses(own_label_loss=False)
    # Trainer divides by the micro-batches; DDP averages processes, which are equal here.
    found = sum(micro_batches(losses, number)) / len(COUNTS)
    assert found == pytest.approx(0.25 * WHOLE["task"] + 0.75 * WHOLE["prediction"])
    log = losses.train_log.pop(processes(1))
    assert log == pytest.approx({f"loss_{name}": value for name, value in WHOLE.items()})
    assert losses.train_log.pop(processes(1)) == {}


def test_a_label_loss_of_the_callers_is_a_share_of_the_step_already() -> None:
    losses = StepLosses(own_label_loss=True)
    found = sum(micro_batches(losses, 1, items=8))  # Trainer takes it as it is
    assert found == pytest.approx(0.25 * (1.0 + 5.0) + 0.75 * WHOLE["prediction"])
    assert losses.train_log.pop(processes(1))["loss_task"] == pytest.approx(6.0)
    losses = StepLosses(own_label_loss=True)
    found = sum(micro_batches(losses, 1))  # a mean over the micro-batch
    assert found == pytest.approx(0.25 * WHOLE["task"] + 0.75 * WHOLE["prediction"])


def test_outside_of_a_step_means_stay_as_they_are() -> None:
    losses = StepLosses(own_label_loss=False)
    micro_batches(losses, 1)
    losses.end_training()
    losses.train_log.clear()
    plan = BatchPlan(True, 3, dict(COUNTS[0]), WEIGHTS, 1.0)
    found = losses.total({n: torch.tensor(v) for n, v in MEANS[0].items()}, plan, None, 1)
    assert float(found) == 0.25 * 1.0 + 0.75 * 3.0 and losses.train_log.pop(processes(1)) == {}
    assert (plan.training_step, plan._replace(training=False).training_step) == (4, 0)


@pytest.mark.parametrize(
    ("own", "items", "parts", "mean"),
    [(False, None, 1, (2 * 1.0 + 6 * 5.0) / 8), (True, None, 2, 4.0), (True, 8, 2, 3.0)],
)
def test_an_evaluation_is_the_mean_over_its_items(
    own: bool, items: Any, parts: int, mean: float
) -> None:
    """With items, each batch counts for as many as the caller's loss was divided by."""
    losses = StepLosses(own_label_loss=own)
    for counts, means in zip(COUNTS, MEANS, strict=True):
        plan = BatchPlan(False, 0, dict(counts), WEIGHTS, 1.0)
        tensors = {name: torch.tensor(value) for name, value in means.items()}
        assert float(losses.total(tensors, plan, items, parts)) == means["task"]
        del tensors["task"]
        others = StepLosses(own_label_loss=own)
        assert float(others.total(tensors, plan, items, parts)) == means["prediction"]
    log = losses.eval_log.pop(processes(1))
    assert log == pytest.approx({"loss_task": mean, "loss_prediction": 2.0})


def test_parts_of_a_loss_are_added_up() -> None:
    losses, log = StepLosses(own_label_loss=False), LossLog()
    plan = BatchPlan(False, 0, {}, {"hidden_states": 2.0, "attention": 0.5}, 1.0)
    parts = {"hidden_states.encoder": 1.0, "hidden_states.decoder": 3.0, "attention": 8.0}
    tensors = {name: torch.tensor(value) for name, value in parts.items()}
    assert float(losses.total(tensors, plan, None, 1)) == 2 * 1.0 + 2 * 3.0 + 0.5 * 8.0
    for value, count in ((6.0, 2), (3.0, 1)):
        log.add("hidden_states.encoder", torch.tensor(value), count)
    log.add("hidden_states.decoder", torch.tensor(5.0), torch.tensor(4))
    log.add("attention", torch.tensor(1.0), 0)  # nothing counted
    assert log.pop(processes(2)) == {"loss_hidden_states": 9 / 3 + 5 / 4}


def test_steps_of_an_epoch_whose_end_is_not_known() -> None:
    def take(source: Iterator[int], number: int = 3) -> tuple[list[int], int]:
        found = [value for _, value in zip(range(number), source, strict=False)]
        return found, sum(found)

    steps, epochs = WholeSteps(), [iter(range(8)), iter(range(10, 14))]
    drawn = [steps.draw(epochs[0], 3, take, steps_done=step) for step in (0, 1, 2, 2)]
    assert drawn == [([0, 1, 2], 3), ([3, 4, 5], 12), ([], None), ([], None)]
    drawn = [steps.draw(epochs[1], 3, take, steps_done=step) for step in (2, 3, 4)]
    assert drawn == [([6, 7, 10], 23), ([11, 12, 13], 36), ([], 0)]
    with pytest.raises(ValueError, match="has 2 batches, fewer than the .*_steps=3 of one step"):
        WholeSteps().draw(iter(range(2)), 3, take, steps_done=0)
