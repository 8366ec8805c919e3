"""``DistillationTrainer``: the ``Trainer`` that learns from a teacher, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from hf_distill.checks import check_labels, warn_of_bypassed_loss
from hf_distill.heads import TaskHead, unwrap_peft
from hf_distill.layers import IntermediateDistillation
from hf_distill.layers.recording import pop_losses
from hf_distill.loss_log import LossLog
from hf_distill.losses import get_logits_loss
from hf_distill.normalization import (
    ItemCounter,
    count_step,
    count_what_can_be,
    mixed,
    weighted_mean,
)
from hf_distill.prediction import compared_logits, prediction_loss
from hf_distill.sharding import ShardingTrainer
from hf_distill.teachers import TeacherSource
from hf_distill.teaching import TrainerWithTeacher
from hf_distill.training_args import DistillationTrainingArguments


class DistillationTrainer(ShardingTrainer, TrainerWithTeacher):
    r"""A drop-in ``Trainer`` whose student also learns from a teacher.

    The loss of an optimizer step, over all its micro-batches and processes, is

    .. math:: L = (1 - w) \, L_{task} + w \, L_{prediction}

    where ``L_task`` is the student's own loss on the labels and ``L_prediction`` the mean over all
    valid rows of ``distillation_loss`` between the logits of student and teacher at
    ``temperature`` (Hinton et al. 2015, section 2). Both means are taken over the whole step, so
    loss and gradient do not depend on how a batch is split into accumulation steps and processes.

    To it come, each by its weight, the losses between hidden states and between attentions of
    mapped layers. In ``stage="intermediate"`` there is nothing else (TinyBERT's first stage): no
    labels, no logits, and the task head stays as it is. For two stages make two trainers, each with
    an output directory of its own.

    With all weights 0 the teacher is neither loaded nor run, and the run is that of a plain
    ``Trainer``: bit for bit without gradient accumulation. With it, ``Trainer`` 5.23 multiplies the
    loss of models that take its number of items and do not use it (BERT, T5, BART, …) by the number
    of micro-batches; here it is the mean over the step. Models that do use it (Llama) and those
    that ``Trainer`` averages (question answering) differ by rounding at most where micro-batches
    have equally many labels. ``Trainer``'s loss of ``GPT2LMHeadModel`` is, also without
    accumulation, (n - 1) / n of the mean for rows of n labels, as it counts one too many; here it
    is the mean. What the loss of a model is a mean of may be unknown here (other label names than
    transformers has, for example): then ``Trainer`` alone decides.

    ``eval_loss`` is the task loss (the prediction loss if the evaluation data has no
    labels, the intermediate one in that stage), and ``compute_metrics`` sees what it sees under
    ``Trainer``. What is saved and pushed is the student alone.

    ``L_task`` is the student's own loss, by its own definition: question answering models of
    transformers count padded positions as classes (the distillation loss does not), so with
    dynamic padding their label loss depends on the longest row of a micro-batch, as under
    ``Trainer``.

    The log has ``loss_task``, ``loss_prediction``, ``loss_hidden_states`` and ``loss_attention``
    beside ``loss`` (and the same with ``eval_``), as far as they are computed.

    Args:
        model: the student, as for ``Trainer``.
        args: a ``DistillationTrainingArguments``.
        teacher_model: the fine-tuned teacher: a module, or the Hub id or directory of one; or a
            list of several, whose predictions are averaged (``teacher_weights``,
            ``teacher_combination``). It is frozen. May be left out if no weight is above 0, or if
            ``train_dataset`` has the columns of ``cache_teacher_outputs``. Evaluation data without
            them is then evaluated without ``eval_loss_prediction``.
        distillation_loss: a function ``(student_logits, teacher_logits, *, temperature, mask)``
            that is used instead of ``args.distillation_loss``. The logits are
            ``(*rows, classes)``, ``mask`` is ``None`` or bool and broadcastable to them (False is
            padding), and the result is one loss a row, ``(*rows)``. A row without any valid class
            does not count, but its loss must be finite.
        **kwargs: everything else that ``Trainer`` takes. A label loss of your own, with class
            weights for example, goes to ``compute_loss_func`` and becomes ``L_task``; a subclass
            that replaces ``compute_loss`` must call ``super().compute_loss``.

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
    current_gradient_accumulation_steps = 1

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_args: Any,
        teacher_model: TeacherSource = None,
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
        self._train_losses = LossLog()
        self._eval_losses = LossLog()
        self._loss_was_computed: bool | None = None
        self._warned_of_bypass = False
        super().__init__(
            model,
            args,
            *trainer_args,
            teacher_model=teacher_model,
            distillation_loss=distillation_loss,
            **kwargs,
        )

    # ---- one step ------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """As ``Trainer``'s. Training begins with it, also anew with a smaller batch size."""
        self._train_losses = LossLog()
        self._fed_to_teacher = self._teacher_only_inputs
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Count, over micro-batches and processes, what the losses of this step are means of."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the last step, in the middle of an epoch: Trainer would make another.
            self.control.should_training_stop = True
            return [], None
        if self.state.global_step % self._teacher_guard.steps_between == 0:
            self._teacher_guard.raise_if_bad()
        self._warn_if_loss_was_bypassed()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        head = self._head
        if head is None or not batches:
            return batches, num_items
        if not self._first_batch_checked:
            self._check_first_batch(head, batches[0])
            self._take_means_over_steps("task" in self._count(head, batches[0]))
            num_items = self._get_num_items_in_batch(batches, device)
        counts = [self._count(head, batch) for batch in batches]
        self._step_counts = count_step(counts, self.accelerator)
        self._loss_was_computed = False
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
        counts = self._count(head, inputs)
        weight = self._distillation_loss_weight
        only_layers = self.args.stage == "intermediate"
        if model.training:
            self._loss_was_computed = True
            if self.args.needs_teacher and weight < 1 and not only_layers:
                present = [name for name, value in inputs.items() if value is not None]
                step = f"a batch of training step {self.state.global_step + 1}"
                check_labels(present, self.label_names, self.args, step)
                if self._unusable_labels is not None:
                    raise ValueError(self._unusable_labels)
        compares_logits = self._compares_logits(model)
        uses_teacher = model.training or (self._evaluates_with_teacher and self._teaches(inputs))
        layers = self._layers_to_compare(model) if uses_teacher else None
        teacher_outputs = None
        if uses_teacher and (compares_logits or layers is not None):
            teacher_outputs = self._run_teacher(inputs, layers)
        student_inputs = {k: v for k, v in inputs.items() if k not in self._teacher_only_inputs}
        if self._teacher is not None:
            # Not left to the model, which label smoothing hides the labels from.
            student: Any = self.model
            student_inputs |= head.target_inputs(inputs, unwrap_peft(student))
        comparison: AbstractContextManager[None] = nullcontext()
        if layers is not None:
            comparison = layers.compare(inputs)
            student_inputs |= layers.student_inputs()
        has_labels = self._has_labels(inputs)
        if model.training and self._unusable_labels is not None:
            has_labels = False
        losses: dict[str, Tensor] = {}
        outputs: Any
        with comparison:
            if not only_layers and (has_labels or teacher_outputs is None):
                losses["task"], outputs = super().compute_loss(
                    model,
                    student_inputs,
                    return_outputs=True,
                    num_items_in_batch=num_items_in_batch,
                )
            else:
                outputs = model(
                    **{k: v for k, v in student_inputs.items() if k not in self.label_names}
                )
        if layers is not None:
            outputs, of_layers = pop_losses(outputs)
            losses |= of_layers
            if model.training and layers.is_sample_due(self.state.global_step):
                layers.write_sample(self.state.global_step, inputs)
            layers.clear()
        if teacher_outputs is not None and compares_logits:
            losses["prediction"] = self._prediction_loss(head, outputs, teacher_outputs, inputs)

        loss: Tensor | None
        over_items = None if self.compute_loss_func is None else num_items_in_batch
        if model.training:
            losses = self._shares_of_step(losses, counts, over_items)
            loss = self._total(losses, weight)
        else:
            if over_items is not None and "task" in counts:
                # What the function divided by, of which Trainer gives each process its share.
                averages = self.args.average_tokens_across_devices
                processes: Any = self.accelerator.num_processes if averages else 1
                counts["task"] = over_items / processes
            for name, value in losses.items():
                if name in counts:
                    self._eval_losses.add(name, weighted_mean(value, counts[name]), counts[name])
            first = [losses[name] for name in ("task", "prediction") if name in losses]
            loss = first[0] if first else self._total(losses, weight)
        return (loss, outputs) if return_outputs else loss

    def _count(self, head: TaskHead, batch: Mapping[str, Any]) -> dict[str, int | Tensor]:
        """Count, by loss, the items of a batch that it is the mean of.

        Without distillation what cannot be counted is left out: ``Trainer`` does not need it.
        """
        counters: dict[str, ItemCounter] = {
            "task": head.count_labelled,
            "prediction": head.count_rows,
        }
        if self._intermediate is not None:
            counters |= self._intermediate.counters()
        if self.args.needs_teacher:
            if self.args.stage == "prediction" and self.compute_loss_func is None:
                head.check_labels(batch)
            return {name: counter(batch) for name, counter in counters.items()}
        return count_what_can_be(counters, head.label_names, batch)

    def _warn_if_loss_was_bypassed(self) -> None:
        if (
            self._loss_was_computed is False
            and self.args.needs_teacher
            and not self._warned_of_bypass
        ):
            self._warned_of_bypass = True
            warn_of_bypassed_loss(type(self))

    def _layers_to_compare(self, model: nn.Module) -> IntermediateDistillation | None:
        layers = self._intermediate
        if self.args.uses_layer_losses:
            recorded = () if layers is None else layers.compared
            raised = [
                k for k, w in self.args.intermediate_weights.items() if w and k not in recorded
            ]
            if raised:
                raise ValueError(
                    f"{raised[0]}_loss_weight was 0 when this trainer was made, so nothing is "
                    "recorded that it could weigh. Make the trainer with a weight above 0, however "
                    "small, and change it then."
                )
            return layers
        if self.args.stage == "intermediate":
            self.args.check_distillation_options()  # a callback has set both weights to 0
        if layers is None:
            return None
        if not model.training:
            return layers if layers.compared else None  # a callback has set the weights to 0
        return layers if layers.is_sample_due(self.state.global_step) else None

    def _total(self, losses: Mapping[str, Tensor], weight: float) -> Tensor:
        """The weighted sum of the parts of the loss."""
        parts = [
            losses[name] * factor
            for name, factor in self.args.intermediate_weights.items()
            if name in losses
        ]
        if self.args.stage == "prediction":
            parts.insert(0, mixed(losses.get("task"), losses.get("prediction"), weight))
        total: Any = sum(parts[1:], start=parts[0])
        return total

    def _prediction_loss(
        self,
        head: TaskHead,
        outputs: Mapping[str, Tensor],
        teacher_outputs: Mapping[str, Tensor],
        batch: Mapping[str, Any],
    ) -> Tensor:
        pair = compared_logits(head, outputs, teacher_outputs, batch)
        self._teacher_guard.check_logits(pair, self._step_of_batch)
        return prediction_loss(
            pair,
            self._custom_loss or get_logits_loss(self.args.distillation_loss),
            temperature=self.args.temperature_at(self._progress),
        )

    def _shares_of_step(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, Any], over_items: Any
    ) -> dict[str, Tensor]:
        """Weight the means of a micro-batch by its share of the step, and log them.

        Outside of a step, when ``compute_loss`` is called by itself, the means are what they are.
        """
        processes = self.accelerator.num_processes
        micro_batches = self.current_gradient_accumulation_steps
        averages = self.compute_loss_func is None  # else `training_step` leaves it to the function
        shares: dict[str, Tensor] = {}
        for name, loss in losses.items():
            if name not in self._step_counts:
                shares[name] = loss
                continue
            share = loss  # of the step already, where the function was told its size
            if name != "task" or over_items is None:
                # Exactly 1 when all shares are equal: bit for bit the loss of Trainer.
                total = self._step_counts[name]
                loss = weighted_mean(loss, counts[name], processes * micro_batches, total)
                share = loss / micro_batches
            self._train_losses.add(name, share, 1 / micro_batches)
            shares[name] = loss if averages else share
        return shares

    @property
    def _evaluates_with_teacher(self) -> bool:
        return self.args.eval_with_teacher or self.args.stage == "intermediate"

    @property
    def _distillation_loss_weight(self) -> float:
        """That of the logits at this step."""
        if self.args.stage == "intermediate":
            return 0.0
        return self.args.distillation_loss_weight_at(self._progress)

    def _compares_logits(self, model: nn.Module) -> bool:
        """Whether the prediction loss is computed: in training where it has a weight.

        In evaluation also where a schedule or a callback has reached 0, so that a metric by which
        checkpoints are compared is there from the first to the last.
        """
        return self._distillation_loss_weight > 0 or (self._logits_checked and not model.training)

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
        """As ``Trainer``'s; where there are no labels, with a distillation loss as the loss."""
        compares = self._logits_checked or self.args.uses_layer_losses
        has_labels = self._has_labels(inputs)
        if has_labels and self.args.stage == "intermediate" and not self._teaches(inputs):
            # There is no loss, for there is nothing to compare the layers with.
            inputs = self._prepare_inputs(inputs)
            labels = tuple(inputs.pop(name) for name in self.label_names)
            _, logits, _ = self.prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            found = labels[0] if len(labels) == 1 else labels
            return None, logits, None if prediction_loss_only else found
        if (
            has_labels
            or self._teacher is None
            or not self._evaluates_with_teacher
            or not compares
            or not self._teaches(inputs)
        ):
            if not has_labels:  # Trainer gives the model all of it
                inputs = {k: v for k, v in inputs.items() if k not in self._teacher_only_inputs}
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
        self._teacher_guard.raise_if_bad()  # for what was trained before
        self._eval_losses = LossLog()
        self._check_columns(getattr(dataloader, "dataset", None), "The evaluation data")
        dataset = getattr(dataloader, "dataset", None)
        self._choose_layers(dataset if self.train_dataset is None else self.train_dataset)
        layers = self._intermediate
        with nullcontext() if layers is None else layers.attached():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        self._teacher_guard.raise_if_bad()
        losses = self._eval_losses.pop(self.accelerator)
        named = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As ``Trainer``'s, with the parts of the training loss and what a schedule changes."""
        self._teacher_guard.raise_if_bad()
        self._warn_if_loss_was_bypassed()
        if "loss" in logs:
            losses = self._train_losses.pop(self.accelerator)
            if self._intermediate is not None:
                self._intermediate.check_balance(losses)
            logs.update(losses)
            for name, value_at in (
                ("temperature", self.args.temperature_at),
                ("distillation_loss_weight", self.args.distillation_loss_weight_at),
            ):
                if getattr(self.args, f"{name}_schedule") != "constant":
                    logs[name] = value_at(self._progress)
        super().log(logs, *args, **kwargs)
