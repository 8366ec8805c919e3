"""``DistillationTrainer``: the ``Trainer`` that learns from a teacher, too."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, default_data_collator
from transformers.trainer_utils import EvalLoopOutput

from hf_distill.checks import (
    TeacherGuard,
    check_datasets,
    check_inputs,
    check_label_range,
    check_labels,
    check_launch,
    same_random_numbers,
    sample_batches,
)
from hf_distill.heads import TaskHead, find_head, without_adapters
from hf_distill.loss_log import LossLog
from hf_distill.normalization import count_step, mixed, weighted_mean
from hf_distill.objectives import get_logits_loss
from hf_distill.pairing import check_models, check_preparation, enforce, try_teacher
from hf_distill.prediction import compared_logits, prediction_loss
from hf_distill.teachers import LiveTeacher, load_teacher
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

LOSSES = ("task", "prediction")


class DistillationTrainer(Trainer):
    r"""A drop-in ``Trainer`` whose student also learns from a teacher.

    The loss of an optimizer step, over all its micro-batches and processes, is

    .. math:: L = (1 - w) \, L_{task} + w \, L_{prediction}

    where ``L_task`` is the student's own loss on the labels and ``L_prediction`` the mean over all
    valid rows of ``distillation_loss`` between the logits of student and teacher at
    ``temperature`` (Hinton et al. 2015, section 2). Both means are taken over the whole step, so
    loss and gradient do not depend on how a batch is split into accumulation steps and processes.

    With ``distillation_loss_weight=0`` the teacher is neither loaded nor run, and the run is that
    of a plain ``Trainer``. ``eval_loss`` is always the task loss (if the evaluation data has
    labels), and ``compute_metrics`` sees what it sees under ``Trainer``. What is saved and pushed
    is the student alone.

    ``L_task`` is the student's own loss, by its own definition: question answering models of
    transformers count padded positions as classes (the distillation loss does not), so with
    dynamic padding their label loss depends on the longest row of a micro-batch, as under
    ``Trainer``.

    The log has ``loss_task`` and ``loss_prediction`` beside ``loss`` (and the same with ``eval_``).

    Args:
        model: the student, as for ``Trainer``.
        args: a ``DistillationTrainingArguments``.
        teacher_model: the fine-tuned teacher: a module, or the Hub id or directory of one. It is
            frozen. May be left out with ``distillation_loss_weight=0``.
        distillation_loss: a function ``(student_logits, teacher_logits, *, temperature, mask)``
            that is used instead of ``args.distillation_loss``. The logits are
            ``(*rows, classes)``, ``mask`` is ``None`` or bool and broadcastable to them (False is
            padding), and the result is one loss a row, ``(*rows)``. A row without any valid class
            does not count, but its loss must be finite.
        **kwargs: everything else that ``Trainer`` takes.

    Raises:
        ValueError: before training, if teacher, student, data and arguments do not fit together.
        RuntimeError: if the processes were launched in a way that cannot train one model.

    Example::

        trainer = DistillationTrainer(
            model=student, teacher_model="path/to/teacher",
            args=DistillationTrainingArguments("out", temperature=5.0),
            train_dataset=train, eval_dataset=validation, processing_class=tokenizer,
        )
        trainer.train()
    """

    args: DistillationTrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_args: Any,
        teacher_model: nn.Module | str | os.PathLike[str] | None = None,
        distillation_loss: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = DistillationTrainingArguments("tmp_trainer")
        if not isinstance(args, DistillationTrainingArguments):
            raise ValueError(
                f"args is a {type(args).__name__}; DistillationTrainer needs "
                "DistillationTrainingArguments (the same options, and those of distillation)."
            )
        check_launch(args)
        self._teacher_source = teacher_model
        self._teacher: LiveTeacher | None = None
        self._teacher_only_inputs: frozenset[str] = frozenset()
        self._custom_loss = distillation_loss
        self._head: TaskHead | None = None
        self._train_losses = LossLog()
        self._eval_losses = LossLog()
        self._step_counts: tuple[Any, Any] = (1.0, 1.0)
        self._first_batch_checked = False
        self._teacher_tried = False
        self._teacher_guard = TeacherGuard(at_once=args.device.type == "cpu")
        super().__init__(model, args, *trainer_args, **kwargs)
        student: Any = self.model
        self._head = find_head(student)
        if self._head is not None:
            # The loss below is the mean of a micro-batch, re-weighted by its share of the step.
            self.model_accepts_loss_kwargs = False
            self.loss_is_scaled_for_ga = False
        check_datasets(self.train_dataset, self.eval_dataset)
        self._prepare_distillation()

    # ---- the teacher ---------------------------------------------------------------------------

    @property
    def teacher_model(self) -> nn.Module | None:
        """The frozen teacher; ``None`` as long as none is needed."""
        return None if self._teacher is None else self._teacher.model

    def _prepare_distillation(self) -> None:
        """Load and check the teacher, if the arguments call for one and it is not there yet."""
        self.args.check_distillation_options()
        if not self.args.distils or self._teacher is not None:
            return
        if self._teacher_source is None:
            raise ValueError(
                f"distillation_loss_weight={self.args.distillation_loss_weight} needs a teacher; "
                "pass teacher_model, or set distillation_loss_weight=0 to train without one."
            )
        if self._head is None:
            raise ValueError(
                f"What {type(self.model).__name__} is for cannot be told from its class, or there "
                "is no distillation for it; use one of transformers' models for a task "
                "(AutoModelFor…), or name yours after theirs (…ForSequenceClassification)."
            )
        if self._custom_loss is None:
            self._head.check_loss(self.args.distillation_loss)
        student: Any = self.model
        teacher = load_teacher(
            self._teacher_source,
            self._head,
            dtype=self.args.teacher_dtype,
            attn_implementation=self.args.teacher_attn_implementation,
            device=self.args.device,
        )
        findings = check_models(teacher, student, self._head)
        findings.append(check_preparation(teacher, student, self._head, self.processing_class))
        enforce(findings, logger)
        self._teacher = LiveTeacher(teacher, self._head)
        parameters = inspect.signature(without_adapters(student).forward).parameters
        self._teacher_only_inputs = self._teacher.input_names - set(parameters)
        self._signature_columns = None

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher reads, too."""
        missing = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if missing and self._signature_columns is not None:
            self._signature_columns += sorted(self._teacher_only_inputs)

    # ---- one step ------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``, after checking everything that can be checked beforehand."""
        self._check_before_training()
        self._train_losses, self._first_batch_checked = LossLog(), False
        return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Count, over micro-batches and processes, what the losses of this step are means of."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        head = self._head
        if head is not None and batches:
            if not self._first_batch_checked:
                self._check_first_batch(head, batches[0])
            self._step_counts = count_step(head, batches, self.accelerator)
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch; see the class for the formula.

        In training the means of the micro-batch are weighted by its share of the step, so that
        what ``Trainer`` (which averages over micro-batches) and DDP (which averages over
        processes) make of them is the mean over the step. In evaluation it is the task loss, or
        the prediction loss where there are no labels.
        """
        head = self._head
        if head is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        # Before the forward pass: Trainer takes the labels out of the batch for label smoothing.
        counts = (head.count_labelled(inputs), head.count_rows(inputs))
        has_labels = self._has_labels(inputs)
        weight = self.args.distillation_loss_weight_at(self._progress)
        teacher_outputs = None
        if weight > 0 and (model.training or self.args.eval_with_teacher):
            teacher_outputs = self._run_teacher(inputs)
        student_inputs = {k: v for k, v in inputs.items() if k not in self._teacher_only_inputs}
        loss: Any
        task: Tensor | None = None
        if has_labels:
            task, outputs = super().compute_loss(model, student_inputs, return_outputs=True)
        else:
            outputs = model(**student_inputs)
        prediction = None
        if teacher_outputs is not None:
            prediction = self._prediction_loss(head, outputs, teacher_outputs, inputs)

        if model.training:
            task, prediction = self._shares_of_step((task, prediction), counts)
            loss = mixed(task, prediction, weight)
        else:
            self._log_evaluation((task, prediction), counts)
            loss = prediction if task is None else task
        return (loss, outputs) if return_outputs else loss

    def _prediction_loss(
        self,
        head: TaskHead,
        outputs: Mapping[str, Tensor],
        teacher_outputs: Mapping[str, Tensor],
        batch: Mapping[str, Any],
    ) -> Tensor:
        pair = compared_logits(head, outputs, teacher_outputs, batch)
        step = f"training step {self.state.global_step + 1}"
        where = step if torch.is_grad_enabled() else "an evaluation"
        self._teacher_guard.check(pair, where)
        return prediction_loss(
            pair,
            self._custom_loss or get_logits_loss(self.args.distillation_loss),
            temperature=self.args.temperature_at(self._progress),
        )

    def _run_teacher(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        if self._teacher is None:
            # The weight was raised after the checks of train(), by a callback for example.
            self._prepare_distillation()
        assert self._teacher is not None
        return self._teacher(batch, self.accelerator)

    def _shares_of_step(
        self, losses: tuple[Tensor | None, Tensor | None], counts: tuple[Any, Any]
    ) -> list[Tensor | None]:
        """Weight the means of a micro-batch by its share of the step, and log them."""
        processes = self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        shares: list[Tensor | None] = []
        for name, loss, count, total in zip(LOSSES, losses, counts, self._step_counts, strict=True):
            if loss is not None:
                # Exactly 1 when all shares are equal: bit for bit the loss of Trainer.
                loss = weighted_mean(loss, count, processes * micro_batches, total)
                self._train_losses.add(name, loss / micro_batches, 1 / micro_batches)
                if not self._trainer_averages:
                    loss = loss / micro_batches
            shares.append(loss)
        return shares

    def _log_evaluation(
        self, losses: tuple[Tensor | None, Tensor | None], counts: tuple[Any, Any]
    ) -> None:
        for name, loss, count in zip(LOSSES, losses, counts, strict=True):
            if loss is not None:
                self._eval_losses.add(name, weighted_mean(loss, count), count)

    @property
    def _trainer_averages(self) -> bool:
        """Whether ``training_step`` divides by the number of micro-batches (before 5.19: maybe)."""
        return hasattr(Trainer, "loss_is_scaled_for_ga") or self.compute_loss_func is None

    @property
    def _progress(self) -> float:
        return self.state.global_step / self.state.max_steps if self.state.max_steps > 0 else 0.0

    # ---- evaluation and logging ----------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As ``Trainer``'s; where there are no labels, with the prediction loss as the loss."""
        weight = self.args.distillation_loss_weight_at(self._progress)
        if (
            self._has_labels(inputs)
            or self._teacher is None
            or not self.args.eval_with_teacher
            or weight == 0
        ):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        label_names, can_return_loss = self.label_names, self.can_return_loss
        self.label_names, self.can_return_loss = [], True
        try:
            loss, logits, _ = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys
            )
        finally:
            self.label_names, self.can_return_loss = label_names, can_return_loss
        return loss, logits, None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluate in the data's order; under ``group_by_length`` Trainer would shuffle.

        Predictions could then not be told apart by whoever scores them, such as EM and F1.
        """
        strategy = self.args.train_sampling_strategy
        self.args.train_sampling_strategy = "sequential"
        try:
            return super()._get_eval_sampler(eval_dataset)
        finally:
            self.args.train_sampling_strategy = strategy

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As ``Trainer``'s, with ``loss_task`` and ``loss_prediction`` among the metrics."""
        self._eval_losses = LossLog()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        self._teacher_guard.raise_if_bad()
        losses = self._eval_losses.pop(self.accelerator)
        named = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As ``Trainer``'s, with the parts of the training loss and what a schedule changes."""
        if "loss" in logs:
            self._teacher_guard.raise_if_bad()
            logs.update(self._train_losses.pop(self.accelerator))
            for name, value_at in (
                ("temperature", self.args.temperature_at),
                ("distillation_loss_weight", self.args.distillation_loss_weight_at),
            ):
                if getattr(self.args, f"{name}_schedule") != "constant":
                    logs[name] = value_at(self._progress)
        super().log(logs, *args, **kwargs)

    # ---- checks --------------------------------------------------------------------------------

    def _has_labels(self, batch: Mapping[str, Any]) -> bool:
        return bool(self.label_names) and all(batch.get(k) is not None for k in self.label_names)

    def _check_before_training(self) -> None:
        self._prepare_distillation()
        if self._head is None:
            return
        if not _makes_labels(self.data_collator):
            columns = getattr(self.train_dataset, "column_names", None)
            check_labels(columns, self.label_names, self.args)
        check_label_range(self.train_dataset, self._head, self.label_names)
        # DeepSpeed knows the sizes of a run only later, in `train`.
        untried = self._teacher is not None and not self._teacher_tried
        if untried and not self.is_deepspeed_enabled:
            self._try_teacher(self._head)

    def _try_teacher(self, head: TaskHead) -> None:
        """Every process looks at the same rows, so that all of them raise or none does."""
        self._teacher_tried = True
        batches = sample_batches(
            self.eval_dataset,
            self.args.teacher_trial_samples,
            batch_size=self.args.eval_batch_size,
            collator=self._get_collator_with_removed_columns(self.data_collator),
        )
        inputs: Iterator[Any] = (self._prepare_inputs(batch) for batch in batches)
        with same_random_numbers():
            finding = try_teacher(head, self._run_teacher, inputs)
        enforce([] if finding is None else [finding], logger)

    def _check_first_batch(self, head: TaskHead, batch: Mapping[str, Any]) -> None:
        self._first_batch_checked = True
        check_labels([k for k, v in batch.items() if v is not None], self.label_names, self.args)
        if self._teacher is not None:
            student: Any = self.model
            check_inputs(self._teacher, student, head, batch)


def _makes_labels(data_collator: Any) -> bool:
    """Whether batches may have labels that the data has not, such as masked tokens."""
    plain = isinstance(data_collator, DataCollatorWithPadding)
    return not plain and data_collator is not default_data_collator
