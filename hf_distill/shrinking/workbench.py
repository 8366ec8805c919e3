"""Measure what a plan depends on: latencies of shapes, nearness to the teacher, time of a step."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from hf_distill.reports.measurements import measure_fastest
from hf_distill.shrinking.shapes import Shape, random_model
from hf_distill.students import create_student
from hf_distill.students.calibration import TooFewTokensError
from hf_distill.students.create import CALIBRATION_TOKENS
from hf_distill.tasks.base import Task
from hf_distill.tasks.tables import evenly_spaced
from hf_distill.trainer import DistillationTrainer
from hf_distill.training_args import DistillationTrainingArguments

_TIMED_ROWS = 8
_COMPARED_ROWS = 64
_TIMED_LENGTHS = 6
_WRITTEN_TOKENS = 32


class StepTimes(NamedTuple):
    """Means over some training steps.

    Attributes:
        step: seconds of a step.
        teacher: seconds of the teacher's forward pass in it.
    """

    step: float
    teacher: float


class Workbench:
    """A teacher, its data and this machine.

    Args:
        task: the task.
        teacher: on the device that is measured, in evaluation mode.
        tokenizer: the teacher's.
        examples: rows that are timed and compared; not those that students are made on, if there
            are others.
        features: of the training data, without labels.
        held_out: features of ``examples``.
        seed: of the students.
        batch_size: of a training step.
        dropout: in a training step; ``None`` for the teacher's.
        precision: ``bf16``, ``fp16`` or ``None``: what a training computes in.
        use_cpu: leave an accelerator unused.

    Attributes:
        loss: of the prediction layer: ``kl_div``, or ``mse`` for heads without probabilities.
    """

    def __init__(
        self,
        task: Task,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Dataset,
        features: Dataset,
        held_out: Dataset,
        *,
        seed: int,
        batch_size: int,
        dropout: float | None,
        precision: str | None,
        use_cpu: bool,
    ) -> None:
        self.task, self.teacher, self.tokenizer = task, teacher, tokenizer
        self.features = features
        self._rows = evenly_spaced(examples, _TIMED_ROWS).to_list()
        self._held_out = evenly_spaced(held_out, _COMPARED_ROWS)
        self._collator = task.data_collator(tokenizer, teacher)
        self._seed, self._batch_size, self._dropout = seed, batch_size, dropout
        self._precision: dict[str, Any] = {} if precision is None else {precision: True}
        self._use_cpu = use_cpu
        self.loss = "kl_div" if task.head(teacher.config).has_probabilities else "mse"
        self.seconds_to_create: dict[Shape, float] = {}
        self._fastest: dict[Shape | None, list[float]] = {}
        """Of each row, by shape; ``None`` is the teacher."""

    def time_shapes(self, shapes: Sequence[Shape]) -> dict[Shape, tuple[float, float]]:
        """Time random models of some shapes and the teacher by turns, a row per call.

        Returns:
            Of each shape its milliseconds and the teacher's: the median over the rows of the
            shortest time, earlier calls included.
        """
        models: dict[str, Any] = {"": self.teacher}
        models |= {str(number): random_model(self.teacher, s) for number, s in enumerate(shapes)}
        limits = []
        for model in models.values():
            if model.can_generate() and model.generation_config is not None:
                # Random weights would end a text elsewhere than the teacher does.
                limits.append((model.generation_config, dict(vars(model.generation_config))))
                model.generation_config.min_new_tokens = _WRITTEN_TOKENS
                model.generation_config.max_new_tokens = _WRITTEN_TOKENS
        try:
            predictors = {n: self.task.predictor(m, self.tokenizer, 1) for n, m in models.items()}
            times = measure_fastest(predictors, self._rows)
        finally:
            for config, before in limits:
                vars(config).update(before)
        named: dict[Shape | None, str] = {None: "", **{s: str(n) for n, s in enumerate(shapes)}}
        for shape, name in named.items():
            earlier = self._fastest.get(shape, times[name])
            self._fastest[shape] = [min(pair) for pair in zip(earlier, times[name], strict=True)]
        typical = {shape: statistics.median(self._fastest[shape]) for shape in named}
        return {shape: (typical[shape], typical[None]) for shape in shapes}

    def check_teacher(self, shape: Shape, rows: Dataset, samples: int) -> None:
        """Check that students of a shape can learn from the teacher.

        Args:
            shape: of a student.
            rows: labelled features.
            samples: how many of them the teacher is tried on.

        Raises:
            ValueError: as ``DistillationTrainer.check``, such as that the teacher is worse than
                the most frequent label.
        """
        with tempfile.TemporaryDirectory() as folder:
            student = random_model(self.teacher, shape)
            options = {"teacher_check_samples": samples, "distillation_loss_weight": 1.0}
            self._trainer(student, folder, rows, **options).check()

    def divergence(self, shape: Shape, teacher: Shape) -> float:
        """Make a student and return its distance from the teacher on held-out rows.

        It is the KL divergence, or the mean squared error for heads without probabilities.

        Raises:
            ValueError: there can be no such student, or it can only be made of more data.
        """
        began = time.perf_counter()
        options: dict[str, Any] = dict(shape.options(teacher))
        data: dict[str, Any] = {}
        if options.keys() - {"num_hidden_layers"}:
            data = {"calibration_data": self.features, "data_collator": self._collator}
        try:
            student = create_student(
                self.teacher,
                **options,
                **data,
                processing_class=self.tokenizer,
                seed=self._seed,
            )
        except TooFewTokensError as error:
            more = "" if error.seen >= CALIBRATION_TOKENS else "pass more training rows, or "
            raise ValueError(
                f"narrower layers are fitted on at least {error.needed:,} tokens of training data, "
                f"and here are {error.seen:,}; {more}choose fewer layers (num_hidden_layers) "
                "alone, which are copies and need no data."
            ) from error
        self.seconds_to_create[shape] = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(student, folder, distillation_loss_weight=1.0, temperature=1.0)
            found = trainer.evaluate()["eval_loss_prediction"]
        return float(found)

    def step_times(self, shape: Shape, stage: str) -> StepTimes:
        """Time training steps of a student of a shape, with the teacher.

        A batch is of about one length, as in a training; the steps have all lengths of the data.
        Each batch comes twice and the second time counts: the first step of a length also prepares
        kernels and memory, which a training does once for many.
        """
        student = random_model(self.teacher, shape, self._dropout).float()
        steps = 2 * _TIMED_LENGTHS
        bar = tqdm(total=steps, desc="Timing steps", unit="step", dynamic_ncols=True)
        clock = _Clock(bar)
        options: dict[str, Any] = {
            "stage": stage, "max_steps": steps, "save_strategy": "no",
            "train_sampling_strategy": "sequential",
        }  # fmt: skip
        if stage == "prediction":
            options["distillation_loss_weight"] = 1.0
        with bar, tempfile.TemporaryDirectory() as folder, clock.watching(self.teacher):
            trainer = self._trainer(student, folder, train=self._timed_batches(), **options)
            if trainer.args.faster_attention is not None:
                student.set_attn_implementation(trainer.args.faster_attention)
            trainer.add_callback(clock)
            trainer.train()
        return clock.times()

    def length(self) -> int:
        """Return the median number of tokens of an input."""
        return int(statistics.median(self._lengths(self._held_out)))

    def filled(self) -> float:
        """Return the share of batches of any lengths that is not padding."""
        lengths = self._lengths(self.features)
        batches = [
            lengths[at : at + self._batch_size] for at in range(0, len(lengths), self._batch_size)
        ]
        return sum(lengths) / sum(max(batch) * len(batch) for batch in batches)

    def _lengths(self, features: Dataset) -> list[int]:
        return [len(row) for row in features[self.teacher.main_input_name]]

    def _timed_batches(self) -> Dataset:
        """Return batches of about one length, at even distances, each twice."""
        lengths = self._lengths(self.features)
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        last = max(0, len(order) - self._batch_size)
        starts = [round((n + 0.5) / _TIMED_LENGTHS * last) for n in range(_TIMED_LENGTHS)]
        batches = [order[start : start + self._batch_size] for start in starts]
        return self.features.select([row for batch in batches for row in 2 * batch])

    def _trainer(
        self,
        student: PreTrainedModel,
        folder: str,
        rows: Dataset | None = None,
        train: Dataset | None = None,
        **options: Any,
    ) -> DistillationTrainer:
        settings = {"teacher_check_samples": 0, "distillation_loss": self.loss, **options}
        args = DistillationTrainingArguments(
            folder,
            per_device_train_batch_size=self._batch_size,
            per_device_eval_batch_size=self._batch_size,
            use_cpu=self._use_cpu,
            seed=self._seed,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.accelerator.is_available() and not self._use_cpu,
            **self._precision,
            **settings,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher_model=self.teacher if args.needs_teacher else None,
            args=args,
            train_dataset=self.features if train is None else train,
            eval_dataset=self._held_out if rows is None else rows,
            data_collator=self._collator,
            processing_class=self.tokenizer,
        )
        trainer.checkpoints.keeps = False
        for shown in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(shown)
        return trainer


class _Clock(TrainerCallback):
    """Times steps, and the teacher in them, and shows on a bar how many there were."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar
        self._ends: list[float] = []
        self._began = 0.0
        self._teacher: list[float] = []

    @contextmanager
    def watching(self, teacher: PreTrainedModel) -> Iterator[None]:
        before = teacher.register_forward_pre_hook(self._before_teacher)
        after = teacher.register_forward_hook(self._after_teacher)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before_teacher(self, teacher: Any, args: Any) -> None:
        self._began = _now(teacher.device)

    def _after_teacher(self, teacher: Any, args: Any, outputs: Any) -> None:
        self._teacher.append(_now(teacher.device) - self._began)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ends.append(time.perf_counter())
        self._bar.update()

    def times(self) -> StepTimes:
        """Return means over every second step."""
        steps = [end - begin for begin, end in pairwise(self._ends)]
        return StepTimes(statistics.mean(steps[::2]), statistics.mean(self._teacher[1::2]))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
