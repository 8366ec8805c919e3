"""A ``Trainer`` with a teacher beside it: loaded, checked, run, recorded; no loss yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, default_data_collator

from hf_distill.checkpoints import distillation_settings
from hf_distill.checks import (
    TeacherGuard,
    check_datasets,
    check_label_names,
    check_labels,
    check_late_inputs,
    check_launch,
    label_out_of_range,
    named_datasets,
    preserve_rng_state,
    sample_batches,
    warn_of_half_precision,
    with_renamed_labels,
)
from hf_distill.compatibility import check_inputs, check_teacher, input_names, raise_on_errors
from hf_distill.heads import TaskHead, find_head
from hf_distill.hub import PublishingTrainer
from hf_distill.layers import IntermediateDistillation, TeacherRecorderCallback
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.projections import detached, without_projections
from hf_distill.teachers import Teacher, TeacherIdentity, TeacherSource, create_teacher
from hf_distill.teachers.columns import SignalDescription, TeacherSignalCollator, check_not_lost
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

_AUTO_MAPPING_ROWS = 64


class TrainerWithTeacher(PublishingTrainer):
    """What ``DistillationTrainer`` does apart from its losses; see there."""

    args: DistillationTrainingArguments

    def __init__(
        self,
        model: nn.Module | None,
        args: DistillationTrainingArguments,
        *trainer_args: Any,
        teacher_model: TeacherSource,
        distillation_loss: Callable[..., Tensor] | None,
        **kwargs: Any,
    ) -> None:
        check_launch(args)
        self._teacher_source = teacher_model
        self._teacher: Teacher | None = None
        self._teacher_identities: list[TeacherIdentity] = []
        self._teacher_only_inputs: frozenset[str] = frozenset()
        self._fed_to_teacher: frozenset[str] = frozenset()
        self._logits_checked = False
        self._unusable_labels: str | None = None
        self._custom_loss = distillation_loss
        self._head: TaskHead | None = None
        self._intermediate: IntermediateDistillation | None = None
        self._attachments: ExitStack | None = None
        self._first_batch_checked = False
        self._step_counts: dict[str, Any] = {}
        self._teacher_tried = False
        self._teacher_guard = TeacherGuard(at_once=args.device.type == "cpu")
        super().__init__(model, args, *trainer_args, **kwargs)
        student: Any = self.model
        self._head = find_head(student)
        self._accepts_loss_kwargs = self.model_accepts_loss_kwargs
        if self._head is not None:
            self._take_means_over_steps(True)
        self._prepare_distillation()

    def _take_means_over_steps(self, ours: bool) -> None:
        """Let losses be means that are weighted here, or what ``Trainer`` makes of this model's."""
        averages = ours and self.compute_loss_func is None
        scaled = getattr(type(self), "loss_is_scaled_for_ga", None)
        self.model_accepts_loss_kwargs = not ours and self._accepts_loss_kwargs
        self.loss_is_scaled_for_ga = False if averages else scaled

    # ---- the teacher ---------------------------------------------------------------------------

    @property
    def teacher_model(self) -> nn.Module | None:
        """The frozen teacher; ``None`` as long as none is needed, or if its outputs are cached.

        Several are an ``nn.ModuleList``.
        """
        teacher = self._teacher
        return None if teacher is None or teacher.is_cached else teacher.model

    @property
    def layer_similarity(self) -> Tensor | None:
        """How alike the layers were if ``layer_mapping="auto"`` looked at them.

        Linear CKA, ``(student layers + 1, teacher layers + 1)``, the embedding output first.
        """
        return None if self._intermediate is None else self._intermediate.similarity

    @property
    def layer_pairs(self) -> list[LayerPair]:
        """Which layers are compared or recorded; none as long as that is not settled."""
        return [] if self._intermediate is None else self._intermediate.pairs

    def _prepare_distillation(self) -> None:
        """Load and check the teacher, if the arguments call for one and it is not there yet."""
        self.args.check_distillation_options()
        recorders = self._recorders()
        if self.args.needs_teacher:
            check_datasets(self.train_dataset, self.eval_dataset)
        else:
            if recorders:
                raise ValueError(
                    "TeacherRecorderCallback has no teacher to record, as every weight of a "
                    "distillation loss is 0; leave the callback out, or set "
                    "distillation_loss_weight above 0."
                )
            return
        if self._teacher is None:
            self._load_teacher()
        if self.args.uses_logits_loss and not self._logits_checked:
            raise ValueError(
                "distillation_loss_weight was 0 when the teacher was loaded for its layers, so its "
                "labels and vocabulary were not compared with the student's. Make the trainer with "
                "a weight above 0, however small, and change it then."
            )
        if self.args.uses_layer_losses or recorders:
            self._prepare_intermediate()

    def _load_teacher(self) -> None:
        cached = SignalDescription.of(self.train_dataset)
        if self.train_dataset is None:
            found = map(SignalDescription.of, named_datasets(None, self.eval_dataset).values())
            cached = next((description for description in found if description), None)
        if self._teacher_source is None and cached is None:
            check_not_lost(self.train_dataset)
            what = f"distillation_loss_weight={self.args.distillation_loss_weight}"
            if not self.args.uses_logits_loss:
                what = f"stage={self.args.stage!r} with a loss between intermediate layers"
            data = type(self.train_dataset)
            unknown = self.train_dataset is not None and not data.__module__.startswith("datasets")
            raise ValueError(
                f"{what} needs a teacher; pass teacher_model, or data with the columns of "
                "cache_teacher_outputs"
                + f" (as an attribute of the {data.__name__}, if it hands them on)"
                * unknown
                + ", or set distillation_loss_weight=0 (in stage 'prediction') "
                "to train without one."
            )
        if self._teacher_source is not None and cached is not None:
            raise ValueError(
                "There are two teachers: teacher_model, and the cached outputs of "
                f"{cached.teacher!r} in train_dataset. Leave teacher_model out to learn from the "
                "columns, or remove the teacher_… columns."
            )
        if self._head is None:
            raise ValueError(
                f"What {type(self.model).__name__} is for cannot be told from its class, or there "
                "is no distillation for it; use one of transformers' models for a task "
                "(AutoModelFor…), or name yours after theirs (…ForSequenceClassification)."
            )
        if self.args.uses_logits_loss and self._custom_loss is None:
            self._head.check_loss(self.args.distillation_loss)
        student: Any = self.model
        self._teacher = create_teacher(
            self._teacher_source if cached is None else cached,
            student,
            self._head,
            self.args,
            self.processing_class,
            records_layers=bool(self._recorders()),
        )
        self._teacher_identities = list(self._teacher.identities)
        collator: Any = self.data_collator
        self.train_dataset, self.data_collator = self._teacher.read_columns(
            self.train_dataset, collator
        )
        self._logits_checked = self.args.uses_logits_loss
        self._teacher_only_inputs = self._teacher.input_names - input_names(student)
        self._signature_columns = None

    def _distillation_settings(self) -> dict[str, Any]:
        return distillation_settings(
            self.args,
            self._teacher_identities,
            custom_loss=self._custom_loss,
            layer_pairs=self.layer_pairs,
        )

    def _recorders(self) -> list[TeacherRecorderCallback]:
        """Those that are among the callbacks."""
        callbacks = self.callback_handler.callbacks
        return [c for c in callbacks if isinstance(c, TeacherRecorderCallback)]

    def _prepare_intermediate(self) -> None:
        """Check the pair's layers, and make what records and compares them."""
        student: Any = self.model
        if self._intermediate is not None and self._intermediate.student is student:
            return
        assert self._teacher is not None
        self._intermediate = IntermediateDistillation(
            self.args, self._teacher.model, student, self._recorders, self.accelerator
        )
        self._teacher.check_layers(self.layer_pairs)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As ``Trainer``'s; a new student gets taps and projections of its own."""
        model: nn.Module = super().call_model_init(trial)
        if self._attachments is not None:
            self._attachments.close()
            self.model = model
            self._prepare_distillation()
            self._choose_layers(self.train_dataset)
            self._attach()
        return model

    def _attach(self) -> None:
        if self._intermediate is not None and self._attachments is not None:
            self._attachments.enter_context(self._intermediate.attached())

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher reads, which may be needed since the last time."""
        if self._head is not None and self._teacher is None:
            self._prepare_distillation()
        missing = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if missing and self._signature_columns is not None:
            self._signature_columns += sorted(self._teacher_only_inputs)

    # ---- training ------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``, after checking everything that can be checked beforehand."""
        self._check_before_training()
        self._choose_layers(self.train_dataset)
        self._first_batch_checked = False
        if self._intermediate is not None and self.optimizer is not None:
            self._intermediate.join_optimizer(self.optimizer, self.lr_scheduler)
        with ExitStack() as self._attachments:
            self._attach()
            try:
                return super().train(*args, **kwargs)
            finally:
                self._attachments = None
                self._step_counts = {}

    def _run_teacher(
        self, batch: Mapping[str, Any], layers: IntermediateDistillation | None = None
    ) -> Mapping[str, Tensor]:
        if self._teacher is None or (self.args.uses_logits_loss and not self._logits_checked):
            # The weight was raised after the checks of train(), by a callback for example.
            self._prepare_distillation()
        teacher = self._teacher
        assert teacher is not None
        late = self._teacher_only_inputs - self._fed_to_teacher
        student: Any = self.model
        if late and self.is_in_train and student.training:
            is_cached = teacher.is_cached  # no collator has read its columns
            if is_cached or self.args.remove_unused_columns:
                check_late_inputs(late, self.train_dataset, {} if is_cached else batch)
            self._fed_to_teacher = self._teacher_only_inputs
        if layers is None:
            return teacher(batch, self.accelerator)
        outputs = layers.run_teacher(batch, lambda *inputs: self._ask(teacher, *inputs))
        self._teacher_guard.check(layers.nonfinite_rows(batch), self._step_of_batch)
        return outputs

    def _ask(
        self, teacher: Teacher, batch: Mapping[str, Any], further_inputs: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        return teacher(batch, self.accelerator, further_inputs)

    @property
    def _step_of_batch(self) -> int:
        """The training step that a batch belongs to, from 1; 0 in an evaluation."""
        return self.state.global_step + 1 if torch.is_grad_enabled() else 0

    def _teaches(self, batch: Mapping[str, Any]) -> bool:
        """Whether the teacher has something to say about a batch: not without its columns."""
        return self._teacher is None or self._teacher.has_outputs(batch)

    def _has_labels(self, batch: Mapping[str, Any]) -> bool:
        return bool(self.label_names) and all(batch.get(k) is not None for k in self.label_names)

    # ---- checkpoints ---------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._teacher_guard.raise_if_bad()  # a run must not resume from weights that are NaN
        super()._save_checkpoint(model, trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        student: Any = self.model
        if state_dict is not None:
            state_dict = without_projections(state_dict)
        with detached(student):
            super()._save(output_dir, state_dict)

    def _save_further(self, folder: Path) -> None:
        if self._intermediate is not None and self._intermediate.compared:
            self._intermediate.save(folder)

    def _without_projections(self) -> AbstractContextManager[None]:
        """Take the projections out of the student, as from its files; shards have them."""
        student: Any = self.model
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return nullcontext() if sharded else detached(student)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        with self._without_projections():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._intermediate is not None and self._intermediate.compared:
            self._intermediate.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        with self._without_projections():
            super()._load_best_model()
        if self._intermediate is not None and self._intermediate.compared:
            self._intermediate.load_best(self.state.best_model_checkpoint)

    # ---- checks --------------------------------------------------------------------------------

    def _check_before_training(self) -> None:
        # DeepSpeed keeps a copy in float32; a search has no model before its first trial.
        if not self.is_deepspeed_enabled and self.model is not None:
            warn_of_half_precision(self.model)
        self._prepare_distillation()
        self._unusable_labels = None
        if self._head is None or not self.args.needs_teacher:
            return
        for name, dataset in named_datasets(self.train_dataset, self.eval_dataset).items():
            self._check_columns(dataset, name)
        if not _makes_labels(self.data_collator):
            columns = getattr(self.train_dataset, "column_names", None)
            check_labels(with_renamed_labels(columns), self.label_names, self.args)
        if self.compute_loss_func is None:
            found = label_out_of_range(self.train_dataset, self._head, self.label_names)
            if found is not None and self.args.needs_labels:
                raise ValueError(found)
            self._unusable_labels = found
        # DeepSpeed knows the sizes of a run only later, in `train`.
        untried = self._teacher is not None and not self._teacher_tried
        if self.args.uses_logits_loss and untried and not self.is_deepspeed_enabled:
            self._try_teacher(self._head)

    def _check_columns(self, dataset: Any, name: str) -> None:
        if self._teacher is not None:
            self._teacher.check_data(dataset, name)

    def _try_teacher(self, head: TaskHead) -> None:
        """Every process looks at the same rows, so that all of them raise or none does."""
        self._teacher_tried = True
        is_cached = self._teacher is not None and self._teacher.is_cached
        batches = sample_batches(
            self.train_dataset if is_cached else self.eval_dataset,
            self.args.teacher_check_samples,
            batch_size=self.args.eval_batch_size,
            collator=self._get_collator_with_removed_columns(self.data_collator),
        )
        inputs: Iterator[Any] = (self._prepare_inputs(batch) for batch in batches)
        with preserve_rng_state():
            data = "the training data" if is_cached else "the evaluation data"
            finding = check_teacher(head, self._run_teacher, inputs, data)
        raise_on_errors([] if finding is None else [finding], logger)

    def _choose_layers(self, dataset: Any) -> None:
        """``layer_mapping="auto"``: look at how alike the layers are, where that is not known."""
        layers = self._intermediate
        if layers is None or layers.pairs_are_known:
            return
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "layer_mapping='auto' looks at the whole student before it is sharded, which FSDP "
                "and DeepSpeed do not allow; choose uniform, last, first or a list."
            )
        teacher = self._teacher
        assert teacher is not None
        if isinstance(dataset, IterableDataset):
            dataset = list(dataset.take(_AUTO_MAPPING_ROWS))
        elif not isinstance(dataset, dict) and not hasattr(dataset, "__len__"):
            raise ValueError(
                "layer_mapping='auto' looks at some rows before training, and a "
                f"{type(dataset).__name__} cannot be read twice; pass a Dataset or a streamed "
                "datasets.IterableDataset, or choose uniform, last, first or a list."
            )
        batches = sample_batches(
            dataset,
            _AUTO_MAPPING_ROWS,
            batch_size=self.args.eval_batch_size,
            collator=self._get_collator_with_removed_columns(self.data_collator),
        )
        left_out = {*self.label_names, *self._teacher_only_inputs}
        inputs = (
            {k: v for k, v in self._prepare_inputs(batch).items() if k not in left_out}
            for batch in batches
        )
        with preserve_rng_state():
            layers.choose_pairs(inputs, lambda *args: self._ask(teacher, *args))

    def _check_first_batch(self, head: TaskHead, batch: Mapping[str, Any]) -> None:
        self._first_batch_checked = True
        if self.args.needs_teacher:
            present = [name for name, value in batch.items() if value is not None]
            check_labels(present, self.label_names, self.args)
            check_label_names(head, present, self.label_names, self.args)
        if self._intermediate is not None:
            # Sharding puts other tensors in the optimizer.
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self._intermediate.check_first_batch(None if sharded else self.optimizer)
        if self._teacher is not None:
            student: Any = self.model
            check_inputs(self._teacher.members, student, head, batch)


def _makes_labels(data_collator: Any) -> bool:
    """Whether batches may have labels that the data has not, such as masked tokens."""
    if isinstance(data_collator, TeacherSignalCollator):
        data_collator = data_collator.inner
    plain = isinstance(data_collator, DataCollatorWithPadding)
    return not plain and data_collator is not default_data_collator
