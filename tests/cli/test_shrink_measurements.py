"""What a plan of ``hf-distill shrink`` measures, with a real clock and tiny models."""

from __future__ import annotations

import functools
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from task_runs import LABELS, OPTIONS, tiny_model, tiny_tokenizer, write_data

from hf_distill import DistillationTrainer, create_student
from hf_distill.cli.arguments import DataSource
from hf_distill.cli.loading import load_examples
from hf_distill.shrinking.shapes import Shape, candidate_shapes
from hf_distill.shrinking.workbench import Workbench
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

TASKS = (
    "text-classification",
    "token-classification",
    "fill-mask",
    "text-generation",
    "summarization",
)


def bench_of(task_name: str, folder: Path, precision: str | None = None) -> Workbench:
    words = dict(
        zip(OPTIONS.get(task_name, [])[::2], OPTIONS.get(task_name, [])[1::2], strict=True)
    )
    options: Any = {n.removeprefix("--"): int(v) for n, v in words.items() if v.isdigit()}
    task = create_task(task_name, TaskArguments(**options))
    teacher = tiny_model(task_name, seed=1, layers=2, **LABELS.get(task_name, {})).eval()
    tokenizer = tiny_tokenizer(task_name)
    source = DataSource(write_data(folder, task_name))
    rows, _ = load_examples(task, source, labelled=task.reads_targets)
    features = task.features(
        rows, tokenizer, teacher, training=True, labelled=task.reads_targets
    ).features
    return Workbench(
        task, teacher, tokenizer, rows, features, features,
        seed=0, batch_size=2, dropout=0.0, precision=precision, use_cpu=True,
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_latencies_and_steps_of_every_task(task: str, tmp_path: Path) -> None:
    bench = bench_of(task, tmp_path)
    config = bench.teacher.generation_config if bench.teacher.can_generate() else None
    before = None if config is None else config.to_dict()
    candidates = candidate_shapes(bench.teacher, bench.length())
    shapes = candidates.shapes[:2]
    times = bench.time_shapes(shapes)
    assert list(times) == shapes
    for own, teacher in times.values():
        assert own > 0 and teacher > 0
        assert teacher == times[shapes[0]][1]
    assert before is None or config is None or config.to_dict() == before
    for stage in ("intermediate", "prediction"):
        step, teacher = bench.step_times(shapes[-1], stage)
        assert 0 < teacher < step
    assert 0 < bench.filled() <= 1


def test_a_busy_machine_does_not_change_the_speed_of_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of("text-classification", tmp_path)
    shapes = candidate_shapes(bench.teacher, bench.length()).shapes[:2]
    quiet = {"": [8.0, 10.0, 30.0], "0": [4.0, 5.0, 6.0], "1": [1.0, 2.0, 3.0]}
    extra = {"": [0.0, 9.0, 0.0], "0": [50.0, 0.0, 50.0], "1": [0.0, 0.0, 70.0]}

    def fastest(predictors: Any, rows: Any) -> dict[str, list[float]]:
        times = {
            name: [a + b for a, b in zip(quiet[name], extra[name], strict=True)]
            for name in predictors
        }
        for name in predictors:  # the next call is disturbed elsewhere
            extra[name].insert(0, extra[name].pop())
        return times

    monkeypatch.setattr("hf_distill.shrinking.workbench.measure_fastest", fastest)
    for _ in range(3):
        times = bench.time_shapes(shapes)
    assert times == {shapes[0]: (5.0, 10.0), shapes[1]: (2.0, 10.0)}


@pytest.mark.parametrize(("precision", "attention"), [("bf16", "eager"), (None, "sdpa")])
def test_steps_are_timed_in_the_attention_that_trains(
    precision: str | None, attention: str, tmp_path: Path, attention_in_training: list[str]
) -> None:
    bench = bench_of("text-classification", tmp_path, precision)
    before = bench.teacher.config._attn_implementation
    assert bench.step_times(candidate_shapes(bench.teacher, 8).shapes[-1], "prediction").step > 0
    assert attention_in_training == [attention]
    assert bench.teacher.config._attn_implementation == before == "sdpa"


def test_steps_are_timed_with_the_dropout_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, found = bench_of("text-classification", tmp_path), []
    train = DistillationTrainer.train

    def watched(self: Any) -> Any:
        found.append(self.model.config.hidden_dropout_prob)
        return train(self)

    monkeypatch.setattr(DistillationTrainer, "train", watched)
    bench.teacher.config.hidden_dropout_prob = 0.3
    bench.step_times(candidate_shapes(bench.teacher, 8).shapes[-1], "prediction")
    assert found == [0.0]


def test_the_teachers_part_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("text-classification", tmp_path)
    bench.features = bench.features.select([3, 0, 5, 2, 4, 1])  # of no order
    shape = candidate_shapes(bench.teacher, 8).shapes[-1]
    fast = bench.step_times(shape, "prediction")
    shapes: list[Any] = []
    forward = bench.teacher.forward

    @functools.wraps(forward)
    def slow(*args: Any, **kwargs: Any) -> Any:
        shapes.append(kwargs["attention_mask"])
        time.sleep(0.2)
        return forward(*args, **kwargs)

    monkeypatch.setattr(bench.teacher, "forward", slow)
    step, teacher = bench.step_times(shape, "prediction")
    assert 0.2 <= teacher < 0.25 + fast.teacher
    assert step - fast.step > 0.1
    assert not bench.teacher._forward_hooks and not bench.teacher._forward_pre_hooks
    lengths = [mask.shape[1] for mask in shapes]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert all(
        torch.equal(first, second) for first, second in zip(shapes[::2], shapes[1::2], strict=True)
    )


def test_the_first_step_of_a_length_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of("text-classification", tmp_path)
    forward, calls = bench.teacher.forward, itertools.count()

    @functools.wraps(forward)
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3 if next(calls) % 2 == 0 else 0)
        return forward(*args, **kwargs)

    monkeypatch.setattr(bench.teacher, "forward", slow)
    step, teacher = bench.step_times(candidate_shapes(bench.teacher, 8).shapes[-1], "prediction")
    assert next(calls) % 2 == 0
    assert teacher < step < 0.1


def test_padding_of_batches_of_any_lengths(tmp_path: Path) -> None:
    bench = bench_of("text-classification", tmp_path)  # two rows to a batch
    lengths = [len(row) for row in bench.features["input_ids"]]
    longest = [max(lengths[at : at + 2]) * len(lengths[at : at + 2]) for at in range(0, 6, 2)]
    assert len({*lengths}) > 1
    assert bench.filled() == pytest.approx(sum(lengths) / sum(longest))


def test_divergence_is_the_mean_kl_of_held_out_rows(tmp_path: Path) -> None:
    bench = bench_of("text-classification", tmp_path)
    whole = candidate_shapes(bench.teacher, 8).teacher
    assert bench.divergence(whole, whole) == pytest.approx(0.0, abs=1e-6)
    shape = Shape(1, whole.hidden_size, whole.intermediate_size, whole.num_attention_heads)
    student = create_student(bench.teacher, num_hidden_layers=1)
    expected = []
    for row in bench.features:
        inputs = {
            name: torch.tensor([row[name]])
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in row
        }
        with torch.no_grad():
            p, q = (
                torch.log_softmax(model(**inputs).logits.double(), dim=-1)
                for model in (bench.teacher, student)
            )
        expected.append(float((p.exp() * (p - q)).sum()))
    measured = bench.divergence(shape, whole)
    assert measured == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert measured > 1e-3 and bench.seconds_to_create[shape] > 0


def test_too_few_tokens_for_a_narrow_student_are_an_error(tmp_path: Path) -> None:
    bench = bench_of("text-classification", tmp_path)
    bench.features = bench.features.select(range(2))
    whole = candidate_shapes(bench.teacher, 8).teacher
    with pytest.raises(ValueError, match="tokens of training data, and here are"):
        bench.divergence(Shape(2, 8, 32, 1), whole)
