"""Teacher, head, layers and guards of one run: everything that a step needs, without a ``Trainer``.

One way, no loops back::

    batch ─> plan ─┬─> teacher_outputs ─┐
                   └─> student_losses <─┴─> {name: loss} ─> weighted_loss ─> backward
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerState

from hf_distill.alignment import Alignment, BothEncodings, SameEncoding
from hf_distill.checks import (
    NanGuard,
    check_datasets,
    check_late_inputs,
    check_trainable,
    named_datasets,
)
from hf_distill.compatibility import check_inputs, check_teacher, input_names, raise_on_errors
from hf_distill.compatibility.tokenizers import check_vocabulary
from hf_distill.compatibility.two_tokenizers import choose_alignment
from hf_distill.heads import TaskHead, find_head, unwrap_peft
from hf_distill.labels import Labels
from hf_distill.layers import IntermediateDistillation, TeacherRecorderCallback
from hf_distill.layers.mapping import LayerPairs
from hf_distill.layers.recording import pop_losses
from hf_distill.layers.settling import SAMPLE_ROWS, readable_sample
from hf_distill.losses import get_logits_loss
from hf_distill.restoring import preserve_rng_state
from hf_distill.step import BatchPlan, ItemCounter, StepLosses, count_items, prediction_loss
from hf_distill.teachers import Teacher, TeacherSource, choose_source, create_teacher
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
SampleBatches = Callable[[Any, int], Iterable[Batch]]
"""(data set, most rows) -> batches on the device."""


class Distiller:
    """Compares a student with its teacher, as the options of one run say.

    Args:
        student: the model that is trained, not yet wrapped.
        args: the options, read at every step.
        teacher_source: a module, a Hub id or directory, or a list of them; ``None`` if the data has
            the teacher's outputs in columns, or if no teacher is needed.
        custom_loss: a function that replaces ``args.distillation_loss``.
        processing_class: the tokenizer or processor that the data was prepared with.
        teacher_processing_class: the teacher's tokenizer, if the data has its encoding also.
        label_names: the entries of a batch that the student's own loss is computed from.
        own_label_loss: whether the caller replaces the student's own loss by a function, which then
            defines its labels and its mean.
        recorders: returns the ``TeacherRecorderCallback``s of the run.
        accelerator: precision and processes; it may be replaced.
    """

    def __init__(
        self,
        student: nn.Module,
        args: DistillationTrainingArguments,
        teacher_source: TeacherSource,
        *,
        custom_loss: Callable[..., Tensor] | None,
        processing_class: Any,
        teacher_processing_class: Any,
        label_names: Sequence[str],
        own_label_loss: bool,
        recorders: Callable[[], list[TeacherRecorderCallback]],
        accelerator: Accelerator,
    ) -> None:
        self.student: Any = student
        self.args = args
        self.accelerator = accelerator
        self.custom_loss = custom_loss
        head: Any = find_head(student)
        self.head: TaskHead | None = head
        self.teacher: Teacher | None = None
        self.alignment: Alignment = SameEncoding(head)
        """Maps the teacher's outputs to the student's tokens."""
        self.layers: IntermediateDistillation | None = None
        self.guard = NanGuard(at_once=args.device.type == "cpu")
        self.teacher_only_inputs: frozenset[str] = frozenset()
        """The entries of a batch that the teacher reads and the student does not."""
        self.labels = Labels(self.head, label_names, args, own_loss=own_label_loss)
        self.losses = StepLosses(own_label_loss=own_label_loss)
        self._source = teacher_source
        self._processing_class = processing_class
        self._teacher_processing_class = teacher_processing_class
        self._own_label_loss = own_label_loss
        self._recorders = recorders
        self._fed_inputs: frozenset[str] = frozenset()
        self._logits_checked = False
        self._teacher_tried = False

    @property
    def layer_pairs(self) -> LayerPairs:
        """The layers that are compared or recorded; none as long as that is not settled."""
        return [] if self.layers is None else self.layers.layer_pairs

    @property
    def evaluates_with_teacher(self) -> bool:
        """Whether evaluations have a distillation loss."""
        compares = self._logits_checked or self.args.uses_layer_losses
        return self.teacher is not None and compares and self._runs_teacher_in_evaluation

    @property
    def _runs_teacher_in_evaluation(self) -> bool:
        return self.args.eval_with_teacher or self.args.stage == "intermediate"

    @property
    def needs_preparation(self) -> bool:
        """Whether a teacher is needed that is not loaded, or not checked for its logits."""
        return self.teacher is None or (self.args.uses_logits_loss and not self._logits_checked)

    # ---- before training -----------------------------------------------------------------------

    def prepare(self, student: nn.Module, train_dataset: Any, eval_dataset: Any) -> bool:
        """Load and check the teacher, if the arguments call for one and it is not there yet.

        True if it was loaded: the batches may have other columns then.
        """
        self.student = student
        self.args.check_distillation_options()
        if not self.args.needs_teacher:
            if self._recorders():
                raise ValueError(
                    "TeacherRecorderCallback has no teacher to record, as every weight of a "
                    "distillation loss is 0; leave the callback out, or set "
                    "distillation_loss_weight above 0."
                )
            return False
        check_datasets(train_dataset, eval_dataset)
        loads = self.teacher is None
        if loads:
            source = choose_source(self._source, self.args, train_dataset, eval_dataset)
            self._load_teacher(source)
        if self.args.uses_logits_loss and not self._logits_checked:
            raise ValueError(
                "distillation_loss_weight was 0 when the teacher was loaded for its layers, so its "
                "labels and vocabulary were not compared with the student's. Make the trainer with "
                "a weight above 0, however small, and change it then."
            )
        if self.args.uses_layer_losses or self._recorders():
            self._prepare_layers()
        return loads

    def _load_teacher(self, source: Any) -> None:
        args, head = self.args, self.head
        if head is None:
            raise ValueError(
                f"Cannot infer a supported task from the class {type(self.student).__name__} of "
                "the student; use one of transformers' models for a task (AutoModelFor…), or name "
                "yours after theirs (…ForSequenceClassification)."
            )
        if isinstance(self._processing_class, PreTrainedTokenizerBase):
            check_vocabulary(self._processing_class, self.student, "student")
        theirs = self._teacher_processing_class
        alignment = choose_alignment(self.student, head, self._processing_class, theirs)
        if args.uses_logits_loss and self.custom_loss is None:
            head.check_loss(args.distillation_loss)
            alignment.check_loss(args.distillation_loss)
        self.teacher = create_teacher(
            source,
            self.student,
            head,
            args,
            theirs if alignment.two_encodings else self._processing_class,
            alignment=alignment,
            records_layers=bool(self._recorders()),
        )
        self.alignment = alignment
        self._logits_checked = args.uses_logits_loss
        self.teacher_only_inputs = self.teacher.input_names - input_names(self.student)
        if alignment.two_encodings:
            stored = self.teacher.input_names if self.teacher.is_cached else frozenset()
            self.teacher_only_inputs = stored | alignment.columns

    def read_columns(self, dataset: Any, data_collator: Any) -> tuple[Any, Any]:
        """Return training data and data collator so that batches carry what the teacher reads."""
        assert self.teacher is not None
        if self.alignment.two_encodings:
            tokenizer = self._teacher_processing_class
            data_collator = BothEncodings(data_collator, tokenizer, self.alignment)
        return self.teacher.read_columns(dataset, data_collator)

    def _prepare_layers(self) -> None:
        if self.layers is not None and self.layers.student is self.student:
            return
        assert self.teacher is not None
        self.layers = IntermediateDistillation(
            self.args, self.teacher.model, self.student, self._recorders, self.accelerator
        )
        self.teacher.check_layers(self.layer_pairs)

    def check(
        self,
        train_dataset: Any,
        eval_dataset: Any,
        collator: Any,
        sample_batches: SampleBatches,
        *,
        tries_teacher: bool,
    ) -> None:
        """Check everything else that can be checked before training."""
        if self.student is not None:  # as it is between the trials of a search
            check_trainable(self.student)
        if self.head is None or not self.args.needs_teacher:
            return
        datasets = named_datasets(train_dataset, eval_dataset)
        for name, dataset in datasets.items():
            self.check_columns(dataset, name)
        self.alignment.check_data(train_dataset)
        self.labels.check_data(train_dataset, collator)
        self.labels.check_evaluation_data(
            {k: v for k, v in datasets.items() if v is not train_dataset}
        )
        if self.args.uses_logits_loss and tries_teacher and not self._teacher_tried:
            self._teacher_tried = True
            cached = self.teacher is not None and self.teacher.is_cached
            # Every process looks at the same rows, so that all of them raise or none does.
            batches = sample_batches(
                train_dataset if cached else eval_dataset, self.args.teacher_check_samples
            )
            data = "the training data" if cached else "the evaluation data"
            read = map(self.alignment.teacher_batch, filter(self.can_teach, batches))
            with preserve_rng_state():
                finding = check_teacher(self.head, self._run_teacher, read, data)
            raise_on_errors([] if finding is None else [finding], logger)

    def check_columns(self, dataset: Any, name: str) -> None:
        """Check that teacher columns of other data mean the same."""
        if self.teacher is not None:
            self.teacher.check_data(dataset, name)

    def settle_layers(self, dataset: Any, sample_batches: SampleBatches, *, sharded: bool) -> None:
        """Settle what depends on data: ``layer_mapping="auto"``, and how projections begin."""
        layers = self.layers
        if layers is None or layers.is_settled:
            return
        sample = readable_sample(dataset, sharded=sharded, chooses_pairs=not layers.pairs)
        if sample is not None:
            batches = partial(sample_batches, sample, SAMPLE_ROWS)
            with preserve_rng_state():
                layers.settle(batches, self._run_teacher, self._unlabelled_inputs)

    def _unlabelled_inputs(self, batch: Batch) -> dict[str, Any]:
        assert self.head is not None
        inputs = self.student_inputs(batch) | self.head.target_inputs(batch, self.student)
        return {name: value for name, value in inputs.items() if name not in self.labels.names}

    def attached(self) -> AbstractContextManager[None]:
        """Record layers inside, with the projections as a part of the student."""
        return nullcontext() if self.layers is None else self.layers.attached()

    def join_optimizer(self, optimizer: torch.optim.Optimizer | None, scheduler: Any) -> None:
        """Let a caller's own optimizer train the projections, which it could not know."""
        if self.layers is not None and optimizer is not None:
            self.layers.join_optimizer(optimizer, scheduler)

    # ---- one step ------------------------------------------------------------------------------

    def begin_training(self) -> None:
        """Forget what an earlier training has left."""
        self.losses.train_log.clear()
        self._fed_inputs = self.teacher_only_inputs

    def check_first_batch(self, batch: Batch, optimizer: torch.optim.Optimizer | None) -> None:
        """Check what is only known once training has begun.

        Without ``optimizer``, if it has other tensors than the model.
        """
        assert self.head is not None
        if self.args.needs_teacher:
            self.labels.check_first_batch(batch)
        if self.layers is not None:
            self.layers.check_first_batch(optimizer)
        if self.teacher is not None:
            self.alignment.check_columns(batch)
            read = self.alignment.teacher_batch(batch)
            check_inputs(self.teacher.members, self.student, self.head, batch, read)

    def count(self, batch: Batch) -> dict[str, int | Tensor]:
        """Count, by loss, the items of a batch that it is the mean of.

        Without distillation those that cannot be counted are left out: nothing needs them then.
        """
        assert self.head is not None
        rows = self.alignment if self.alignment.is_in(batch) else self.head
        counters: dict[str, ItemCounter] = {
            "task": self.head.count_labelled,
            "prediction": rows.count_rows,
        }
        if self.layers is not None:
            counters |= self.layers.counters()
        if not self.args.needs_teacher:
            return count_items(counters, self.head.label_names, batch)
        if self.args.stage == "prediction" and not self._own_label_loss:
            self.head.check_labels(batch)
        return {name: counter(batch) for name, counter in counters.items()}

    def begin_step(self, batches: Sequence[Batch]) -> None:
        """Count, over micro-batches and processes, the items that the losses are means of."""
        self.losses.begin_step([self.count(batch) for batch in batches], self.accelerator)

    def can_teach(self, batch: Batch) -> bool:
        """Return whether a batch has the columns that a teacher may need."""
        teacher = self.teacher
        return self.alignment.is_in(batch) and (teacher is None or teacher.has_outputs(batch))

    def student_inputs(self, batch: Batch) -> dict[str, Any]:
        """Return a batch without what the teacher alone reads."""
        return {k: v for k, v in batch.items() if k not in self.teacher_only_inputs}

    def plan(self, batch: Batch, state: TrainerState, *, training: bool) -> BatchPlan:
        """Settle what is computed of a batch; before it is, as ``Trainer`` may take labels out."""
        args, step = self.args, state.global_step
        progress = _progress(state)
        mixes = args.stage == "prediction"
        weight = args.distillation_loss_weight_at(progress) if mixes else 0.0
        mixed = {"task": 1 - weight, "prediction": weight} if mixes else {}
        weights = {name: value for name, value in mixed.items() if value}
        weights |= args.intermediate_weights
        temperature = args.temperature_at(progress)
        plan = BatchPlan(training, step, self.count(batch), weights, temperature)
        if training and "task" in weights and args.needs_teacher:
            self.labels.check_batch(batch, step + 1)
        if not training and not (self._runs_teacher_in_evaluation and self.can_teach(batch)):
            return plan
        return plan._replace(
            compares_layers=self._uses_layers(step, training=training),
            # In evaluation also where a schedule or a callback has reached 0, so that a metric by
            # which checkpoints are compared is there from the first to the last.
            compares_logits=weight > 0 or (self._logits_checked and not training),
        )

    def _uses_layers(self, step: int, *, training: bool) -> bool:
        """Return whether the layers of a batch are compared or recorded."""
        layers = self.layers
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
            return layers is not None
        if self.args.stage == "intermediate":
            self.args.check_distillation_options()  # a callback has set both weights to 0
        if layers is None:
            return False
        # In an evaluation also where a callback has set the weights to 0.
        return layers.is_sample_due(step) if training else bool(layers.compared)

    def teacher_outputs(self, batch: Batch, plan: BatchPlan) -> Mapping[str, Tensor] | None:
        """Run the teacher, or read its outputs from the batch; ``None`` if none are needed."""
        if not plan.uses_teacher:
            return None
        if not plan.compares_layers or self.layers is None:
            return self._run_teacher(self.alignment.teacher_batch(batch))
        outputs = self.layers.run_teacher(batch, self._run_teacher)
        self.guard.check(self.layers.nonfinite_rows(batch), plan.training_step)
        return outputs

    def check_fed_inputs(self, batch: Batch, train_dataset: Any) -> None:
        """Refuse a teacher that is first needed in the middle of a training and lacks inputs."""
        late = self.teacher_only_inputs - self._fed_inputs
        if late:
            assert self.teacher is not None
            # No collator has read the columns of a cached teacher, or of one that is aligned.
            unread = self.teacher.is_cached or self.alignment.two_encodings
            if unread or self.args.remove_unused_columns:
                check_late_inputs(late, train_dataset, {} if unread else batch)
            self._fed_inputs = self.teacher_only_inputs

    def _run_teacher(
        self, batch: Batch, further_inputs: Mapping[str, Any] = MappingProxyType({})
    ) -> Mapping[str, Tensor]:
        assert self.teacher is not None
        return self.teacher(batch, self.accelerator, further_inputs)

    def student_losses(
        self,
        model: nn.Module,
        batch: Batch,
        teacher_outputs: Mapping[str, Tensor] | None,
        plan: BatchPlan,
        task_loss: Callable[[dict[str, Any]], tuple[Tensor, Any]],
    ) -> tuple[dict[str, Tensor], Any]:
        """Run the student, which may be wrapped, and compare it with the teacher.

        ``task_loss`` returns the mean of the label loss and the outputs for the student's inputs.
        Returned are the losses by name, each a mean over the items of this batch, and the outputs.
        """
        assert self.head is not None
        layers = self.layers if plan.compares_layers else None
        inputs = self.student_inputs(batch)
        if self.teacher is not None:
            # Not left to the model, which label smoothing hides the labels from.
            inputs |= self.head.target_inputs(batch, unwrap_peft(self.student))
        if layers is not None:
            inputs |= layers.further_inputs(self.student)
        uses_labels = self.labels.have_loss(batch, training=plan.training)
        losses: dict[str, Tensor] = {}
        outputs: Any
        with nullcontext() if layers is None else layers.compare(batch):
            if self.args.stage == "prediction" and (uses_labels or teacher_outputs is None):
                losses["task"], outputs = task_loss(inputs)
            else:
                outputs = model(**{k: v for k, v in inputs.items() if k not in self.labels.names})
        if layers is not None:
            outputs, of_layers = pop_losses(outputs)
            losses |= of_layers
            if plan.training and layers.is_sample_due(plan.step):
                layers.write_sample(plan.step, batch)
            layers.clear()
        if teacher_outputs is not None and plan.compares_logits:
            logits = self.alignment.logits(batch, outputs, teacher_outputs, plan.temperature)
            self.guard.check_logits(logits, plan.training_step)
            loss_function = self.custom_loss or get_logits_loss(self.args.distillation_loss)
            losses["prediction"] = prediction_loss(
                logits, loss_function, temperature=plan.temperature
            )
        return losses, outputs

    def weighted_loss(
        self, losses: Mapping[str, Tensor], plan: BatchPlan, num_items: Any
    ) -> Tensor:
        """Log the losses of a batch, and add them up; ``num_items`` are those of ``Trainer``."""
        averages = self.args.average_tokens_across_devices
        parts = self.accelerator.num_processes if averages else 1
        loss = self.losses.total(losses, plan, num_items, parts)
        # fp16 leaves out the steps whose numbers overflow.
        if plan.training and not self.args.fp16 and losses.keys() <= plan.counts.keys():
            self.guard.check_loss(loss, plan.training_step)
        return loss

    # ---- evaluation and log --------------------------------------------------------------------

    def begin_evaluation(self) -> None:
        """Forget the losses of an earlier evaluation."""
        self.guard.raise_if_bad()
        self.losses.eval_log.clear()

    def end_evaluation(self) -> dict[str, float]:
        """Return the means of the losses over an evaluation."""
        self.guard.raise_if_bad()
        return self.losses.eval_log.pop(self.accelerator)

    def log_entries(self, state: TrainerState) -> dict[str, float]:
        """Return the mean losses since the last call, and what a schedule gave the last step."""
        entries = self.losses.train_log.pop(self.accelerator)
        self.alignment.warn_of_lost_rows()
        if self.layers is not None and self.accelerator.is_main_process:
            self.layers.losses.check_balance(entries)
        for name, value_at in (
            ("temperature", self.args.temperature_at),
            ("distillation_loss_weight", self.args.distillation_loss_weight_at),
        ):
            if getattr(self.args, f"{name}_schedule") != "constant":
                entries[name] = value_at(_progress(state, steps_back=1))
        return entries

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write projections and layer pairs next to a checkpoint; every process calls it."""
        if self.layers is not None and self.layers.compared:
            self.layers.save(folder)

    def load(self, folder: str | os.PathLike[str] | None, *, is_best: bool = False) -> None:
        """Read what ``save`` wrote; of the best checkpoint, if it has any."""
        if self.layers is not None and self.layers.compared:
            self.layers.load(folder, optional=is_best)


def _progress(state: TrainerState, steps_back: int = 0) -> float:
    step = max(state.global_step - steps_back, 0)
    return step / state.max_steps if state.max_steps > 0 else 0.0
