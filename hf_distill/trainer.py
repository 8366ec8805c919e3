"""``DistillationTrainer``: a ``Trainer`` whose student also learns from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy
from transformers.utils.hub import PushInProgress

from hf_distill.checkpoints import CheckpointKeeper, Terminated, distillation_settings
from hf_distill.checks import (
    check_steps,
    sample_batches,
    warn_of_bypassed_loss,
    warn_of_half_precision,
)
from hf_distill.distiller import Distiller
from hf_distill.hub import HubPublisher
from hf_distill.hub.facts import stage_facts
from hf_distill.launch import check_launch
from hf_distill.layers import TeacherRecorderCallback
from hf_distill.layers.mapping import LayerPairs
from hf_distill.layers.projections import detached, without_projections
from hf_distill.restoring import temporarily_set
from hf_distill.sharding import (
    complete_state,
    forget_deepspeed_configuration,
    gather_weights_on_save,
    name_fsdp_blocks,
    saves_shards,
)
from hf_distill.step import WholeSteps
from hf_distill.teachers import TeacherSource
from hf_distill.training_args import DistillationTrainingArguments


class DistillationTrainer(Trainer):
    r"""A drop-in ``Trainer`` whose student also learns from a teacher.

    The loss of an optimizer step, over all its micro-batches and processes, is

    .. math:: L = (1 - w) \, L_{task} + w \, L_{prediction}

    where ``L_task`` is the student's own loss on the labels and ``L_prediction`` the mean over all
    valid rows of ``distillation_loss`` between the logits of student and teacher at
    ``temperature`` (Hinton et al. 2015, section 2). Both means are taken over the whole step, so
    loss and gradient do not depend on how a batch is split into accumulation steps and processes.
    What is left of a stream when an epoch ends in the middle of a step is a part of the next one.

    Weighted losses between hidden states and between attentions of mapped layers are added. In
    ``stage="intermediate"`` there is nothing else (TinyBERT's first stage): no labels, no logits,
    and the task head stays as it is. For two stages make two trainers, each with its own output
    directory.

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
    next to ``loss`` (and the same with ``eval_``), as far as they are computed.

    Args:
        model: the student, as for ``Trainer``.
        args: a ``DistillationTrainingArguments``.
        teacher_model: the fine-tuned teacher: a module, or the Hub id or directory of one; or a
            list of several, whose predictions are averaged (``teacher_weights``,
            ``teacher_combination``). It is frozen. May be left out if no weight is above 0, or if
            ``train_dataset`` has the columns of ``cache_teacher_outputs``. Evaluation data without
            them is then evaluated without ``eval_loss_prediction``.
        teacher_processing_class: the teacher's tokenizer, if it is not the student's. The data
            then has both encodings (``hf_distill.alignment.encode_for_teacher``): a label of a
            text needs no more, answers are aligned by characters and tags by words. With the
            student's tokenizer nothing changes.
        distillation_loss: a function ``(student_logits, teacher_logits, *, temperature, mask)``
            that is used instead of ``args.distillation_loss``. The logits are
            ``(*rows, classes)``, ``mask`` is ``None`` or bool and broadcastable to them (False is
            padding), and the result is one loss per row, ``(*rows)``. A row without any valid class
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
    distiller: Distiller
    """Teacher, head, layers and guards of this run."""
    push_in_progress: Any = None
    _attachments: ExitStack | None = None
    _first_batch_checked = False
    _steps: WholeSteps
    _loss_was_computed: bool | None = None
    _warned_of_bypass = False

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_args: Any,
        teacher_model: TeacherSource = None,
        teacher_processing_class: Any = None,
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
        self.checkpoints = CheckpointKeeper()
        self.publisher = HubPublisher(args)
        super().__init__(model, args, *trainer_args, **kwargs)
        student: Any = self.model
        self.distiller = Distiller(
            student,
            args,
            teacher_model,
            custom_loss=distillation_loss,
            processing_class=self.processing_class,
            teacher_processing_class=teacher_processing_class,
            label_names=self.label_names,
            own_label_loss=self.compute_loss_func is not None,
            recorders=self._recorders,
            accelerator=self.accelerator,
        )
        if self.is_fsdp_enabled:
            name_fsdp_blocks(self.accelerator, student)
        self._accepts_loss_kwargs = self.model_accepts_loss_kwargs
        if self.distiller.head is not None:
            self._take_means_over_steps(True)
        self._prepare()

    # ---- teacher -------------------------------------------------------------------------------

    @property
    def teacher_model(self) -> nn.Module | None:
        """The frozen teacher; ``None`` as long as none is needed, or if its outputs are cached.

        Several are an ``nn.ModuleList``.
        """
        teacher = self.distiller.teacher
        return None if teacher is None or teacher.is_cached else teacher.model

    @property
    def layer_similarity(self) -> Tensor | dict[str, Tensor] | None:
        """Linear CKA between the layers, if ``layer_mapping="auto"`` compared them.

        ``(student layers + 1, teacher layers + 1)``, the embedding output first; of models with
        encoder and decoder by their names.
        """
        return None if self.distiller.layers is None else self.distiller.layers.similarity

    @property
    def layer_pairs(self) -> LayerPairs:
        """The layers that are compared or recorded; none as long as that is not settled.

        Those of ``encoder`` and of ``decoder`` by their names, for models that have both.
        """
        return self.distiller.layer_pairs

    def check(self) -> None:
        """Check everything that can be checked before training; ``train`` does it first.

        Raises:
            ValueError: teacher, student, data and arguments do not fit together.
        """
        check_steps(self.args, self.train_dataset)
        # DeepSpeed keeps a copy in float32; a search has no model before its first trial.
        if not self.is_deepspeed_enabled and self.model is not None:
            warn_of_half_precision(self.model)
        self._prepare()
        self.distiller.check(
            self.train_dataset,
            self.eval_dataset,
            self.data_collator,
            self._sample_batches,
            # DeepSpeed knows the sizes of a run only later, in `train`.
            tries_teacher=not self.is_deepspeed_enabled,
        )

    def _recorders(self) -> list[TeacherRecorderCallback]:
        callbacks = self.callback_handler.callbacks
        return [c for c in callbacks if isinstance(c, TeacherRecorderCallback)]

    def _prepare(self) -> None:
        """Load and check the teacher, if the arguments call for one and it is not there yet."""
        student: Any = self.model
        if self.distiller.prepare(student, self.train_dataset, self.eval_dataset):
            columns = self.distiller.read_columns(self.train_dataset, self.data_collator)
            self.train_dataset, self.data_collator = columns
            self._signature_columns = None

    def _sample_batches(self, dataset: Any, rows: int) -> Iterator[Any]:
        collator = self._get_collator_with_removed_columns(self.data_collator)
        size = self.args.eval_batch_size
        for batch in sample_batches(dataset, rows, batch_size=size, collator=collator):
            yield self._prepare_inputs(batch)

    @property
    def _is_sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _settle_layers(self, dataset: Any) -> None:
        self.distiller.settle_layers(dataset, self._sample_batches, sharded=self._is_sharded)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As ``Trainer``'s; a new student gets its own taps and projections."""
        model: nn.Module = super().call_model_init(trial)
        if self._attachments is not None:
            self._attachments.close()
            self.model = model
            self._prepare()
            self._settle_layers(self.train_dataset)
            self._attachments.enter_context(self.distiller.attached())
        return model

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that only the teacher reads, which may be needed since the last time."""
        distiller = self.distiller
        if distiller.head is not None and distiller.teacher is None:
            self._prepare()
        missing = self._signature_columns is None
        super()._set_signature_columns_if_needed()
        if missing and self._signature_columns is not None:
            self._signature_columns += sorted(distiller.teacher_only_inputs)

    def _take_means_over_steps(self, ours: bool) -> None:
        """Let losses be means that are weighted here, or what ``Trainer`` makes of this model's."""
        averages = ours and self.compute_loss_func is None
        scaled = getattr(type(self), "loss_is_scaled_for_ga", None)
        self.model_accepts_loss_kwargs = not ours and self._accepts_loss_kwargs
        self.loss_is_scaled_for_ga = False if averages else scaled

    def create_accelerator_and_postprocess(self) -> None:
        """As ``Trainer``'s, also for a second trainer under DeepSpeed."""
        forget_deepspeed_configuration()
        super().create_accelerator_and_postprocess()
        gather_weights_on_save(self.accelerator)
        if hasattr(self, "distiller"):
            self.distiller.accelerator = self.accelerator

    # ---- training ------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As ``Trainer.train``, from a complete checkpoint of the same distillation.

        Raises:
            ValueError: teacher, student, data and arguments do not fit together; or there is no
                such checkpoint, or it is incomplete or of another run.
            SystemExit: after a SIGTERM, when a checkpoint is saved.
        """
        self.check()
        self._settle_layers(self.train_dataset)
        self._first_batch_checked, self._steps = False, WholeSteps()
        self.distiller.join_optimizer(self.optimizer, self.lr_scheduler)
        keeper = self.checkpoints
        with ExitStack() as self._attachments:
            self._attachments.enter_context(self.distiller.attached())
            checkpoint = keeper.begin(
                resume_from_checkpoint,
                str(self.args.output_dir),
                self.distillation_settings(),
                self.accelerator,
                evaluate=partial(self._make_up_evaluation, trial, *args, **kwargs),
                student=self.model,
                skips_data=not self.args.ignore_data_skip,
            )
            train = partial(super().train, checkpoint, trial, *args, **kwargs)
            self.add_callback(keeper)
            try:
                # transformers' own answer to SIGTERM, if it was asked for, is left alone.
                return train() if self.args.enable_jit_checkpoint else keeper.run(train)
            except Terminated:
                step = self.state.global_step
                keeper.end(step, lambda: self._save_checkpoint(self.model_wrapped, trial))
            finally:
                self.remove_callback(keeper)
                self._attachments = None
                self.distiller.losses.end_training()

    def get_train_dataloader(self) -> DataLoader:
        """As ``Trainer``'s. A training begins with it, also again with a smaller batch size."""
        self.distiller.begin_training()
        self._steps = WholeSteps()
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Count, over micro-batches and processes, the items that the losses are means of."""
        distiller, step = self.distiller, self.state.global_step
        if step >= self.state.max_steps:
            # Resumed from the last step, in the middle of an epoch: Trainer would make another.
            self.checkpoints.make_up_evaluation()
            self.control.should_training_stop = True
            return [], None
        if step % distiller.guard.steps_between == 0:
            distiller.guard.raise_if_bad()
        self._warn_if_loss_was_bypassed()
        batches, num_items = self._steps.draw(
            epoch_iterator,
            num_batches,
            lambda source: super(DistillationTrainer, self).get_batch_samples(
                source, num_batches, device
            ),
            steps_done=step,
        )
        if distiller.head is None or not batches:
            return batches, num_items
        if not self._first_batch_checked:
            self._first_batch_checked = True
            if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
                distiller.settle_layers(self.train_dataset, self._sample_batches, sharded=False)
            # Sharding puts other tensors in the optimizer.
            distiller.check_first_batch(batches[0], None if self._is_sharded else self.optimizer)
            self._take_means_over_steps("task" in distiller.count(batches[0]))
            num_items = self._get_num_items_in_batch(batches, device)
        distiller.begin_step(batches)
        self._loss_was_computed = False
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of a micro-batch; see the class for the formula.

        In training the means of the micro-batch are weighted by its share of the step, so that
        what ``Trainer`` (which averages over micro-batches) and DDP (which averages over
        processes) make of them is the mean over the step. In evaluation it is the task loss, or
        the prediction loss where there are no labels.
        """
        distiller, training = self.distiller, model.training
        task_loss: Any = partial(
            super().compute_loss, model, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        if distiller.head is None:
            loss, outputs = task_loss(inputs)
            return (loss, outputs) if return_outputs else loss
        self._loss_was_computed = training or self._loss_was_computed
        plan = distiller.plan(inputs, self.state, training=training)
        if plan.uses_teacher:
            self._prepare_late(inputs, training=training)
        teacher_outputs = distiller.teacher_outputs(inputs, plan)
        losses, outputs = distiller.student_losses(model, inputs, teacher_outputs, plan, task_loss)
        loss = distiller.weighted_loss(losses, plan, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _prepare_late(self, inputs: dict[str, Any], *, training: bool) -> None:
        """Load a teacher that a callback needs since the training began, if there is one."""
        if self.distiller.needs_preparation:
            self._prepare()
        if training and self.is_in_train:
            self.distiller.check_fed_inputs(inputs, self.train_dataset)

    def _warn_if_loss_was_bypassed(self) -> None:
        bypassed = self._loss_was_computed is False and self.args.needs_teacher
        if bypassed and not self._warned_of_bypass:
            self._warned_of_bypass = True
            warn_of_bypassed_loss(type(self))

    # ---- evaluation and logging ----------------------------------------------------------------

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As ``Trainer``'s; where there are no labels, with a distillation loss as the loss."""
        distiller = self.distiller
        has_labels, can_teach = distiller.labels.are_in(inputs), distiller.can_teach(inputs)
        options = (prediction_loss_only, ignore_keys)
        if has_labels and self.args.stage == "intermediate" and not can_teach:
            # There is no loss, for there is nothing to compare the layers with.
            inputs = self._prepare_inputs(inputs)
            labels = tuple(inputs.pop(name) for name in self.label_names)
            _, logits, _ = self.prediction_step(model, inputs, *options)
            found = labels[0] if len(labels) == 1 else labels
            return None, logits, None if prediction_loss_only else found
        if has_labels:
            return super().prediction_step(model, inputs, *options)
        if not (can_teach and distiller.evaluates_with_teacher):
            # Trainer gives the model all of a batch without labels.
            return super().prediction_step(model, distiller.student_inputs(inputs), *options)
        with temporarily_set(self, label_names=[], can_return_loss=True):
            loss, logits, _ = super().prediction_step(model, inputs, *options)
        return loss, logits, None

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Evaluate in the data's order; under ``group_by_length`` Trainer would shuffle.

        Whoever scores the predictions, such as EM and F1, could then not tell them apart.
        """
        with temporarily_set(self.args, train_sampling_strategy="sequential"):
            return super()._get_eval_sampler(eval_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As ``Trainer``'s, with ``loss_task`` and ``loss_prediction`` among the metrics."""
        distiller = self.distiller
        distiller.begin_evaluation()
        dataset = getattr(dataloader, "dataset", None)
        distiller.check_columns(dataset, "The evaluation data")
        self._settle_layers(dataset if self.train_dataset is None else self.train_dataset)
        with distiller.attached():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        losses = distiller.end_evaluation()
        named = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = str(self.args.metric_for_best_model).removeprefix("eval_")
        names = [name.removeprefix("eval_") for name in metrics]
        if self.args.metric_for_best_model is not None and wanted not in names:
            raise ValueError(
                f"metric_for_best_model={wanted!r} is not a metric of the evaluation, which has "
                f"{', '.join(names)}; name one of these."
            )
        return super()._determine_best_metric(metrics, trial)

    def _make_up_evaluation(self, trial: Any, ignore_keys_for_eval: Any = None) -> None:
        """Evaluate what a run left out when a SIGTERM ended it, as it would have done."""
        metrics = self._evaluate(trial, ignore_keys_for_eval)
        if self._determine_best_metric(metrics, trial):
            folder = self._checkpoint_folder(trial)
            self.state.best_model_checkpoint = str(folder) if folder.exists() else None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As ``Trainer``'s, with the parts of the training loss and what a schedule changes."""
        self.distiller.guard.raise_if_bad()
        self._warn_if_loss_was_bypassed()
        if "loss" in logs:
            logs.update(self.distiller.log_entries(self.state))
        super().log(logs, *args, **kwargs)

    # ---- checkpoints ---------------------------------------------------------------------------

    def distillation_settings(self) -> dict[str, Any]:
        """Return all that the distillation depends on, ready for JSON and without paths."""
        distiller = self.distiller
        teacher = distiller.teacher
        return distillation_settings(
            self.args,
            () if teacher is None else teacher.identities,
            custom_loss=distiller.custom_loss,
            layer_pairs=distiller.layer_pairs,
        )

    def _checkpoint_folder(self, trial: Any) -> Path:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        return Path(self._get_output_dir(trial=trial)) / name

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.distiller.guard.raise_if_bad()  # a run must not resume from weights that are NaN
        folder, limit = self._checkpoint_folder(trial), self.args.save_total_limit
        if self.is_fsdp_enabled and self.optimizer is not None and not self.args.save_only_model:
            complete_state(self.optimizer)
        # Trainer would delete older ones before all processes have written the new one.
        with (
            temporarily_set(self.args, save_total_limit=None),
            self.checkpoints.writing(folder, self.state, writes=self.args.should_save, limit=limit),
        ):
            super()._save_checkpoint(model, trial)
            self.distiller.save(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``Trainer``'s, which writes no student under FSDP with SHARDED_STATE_DICT."""
        if self.is_fsdp_enabled and saves_shards(self.accelerator):
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        student: Any = self.model
        if state_dict is not None:
            state_dict = without_projections(state_dict)
        with detached(student):
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        student: Any = self.model
        # Shards have the projections, and the files of a student have not.
        with nullcontext() if self._is_sharded else detached(student):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.distiller.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        student: Any = self.model
        with nullcontext() if self._is_sharded else detached(student):
            super()._load_best_model()
        self.distiller.load(self.state.best_model_checkpoint, is_best=True)

    # ---- Hub -----------------------------------------------------------------------------------

    def add_facts(self, **facts: Any) -> None:
        """Add what the model card is to say of how the student was made, by its name there."""
        self.publisher.add_facts(**facts)

    def stage_facts(self) -> dict[str, Any]:
        """Return how this stage was trained, as ``distillation.json`` has it."""
        return stage_facts(self.args, self.state, self.distillation_settings())

    def distillation_facts(self) -> dict[str, Any]:
        """Return how the student was made, as ``distillation.json`` has it."""
        model = self.accelerator.unwrap_model(self.model)
        head = self.distiller.head
        task = None if head is None else head.task
        return self.publisher.facts(model, task, self.state, self.stage_facts())

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, if it is not there yet.

        Raises:
            ValueError: ``hub_strategy`` would publish whole checkpoints.
            PublishingError: the Hub cannot be reached, or does not allow it.
        """
        self.publisher.check_strategy()
        if self.is_world_process_zero():
            # Not Trainer's: up to 5.17 it takes no `private`.
            created = self.publisher.create_repository(token, private)
            self.hub_model_id = created  # type: ignore[assignment]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write ``README.md``, ``distillation.json`` and the plot of the losses.

        A card that a person wrote is kept; what was measured is put below it.

        Args:
            *args: as for ``Trainer``: ``language``, ``license``, ``tags`` (in addition to those of
                distillation), ``model_name`` (the title).
            **kwargs: the same, ``dataset`` and ``dataset_tags`` name the data, ``finetuned_from``
                the model that the student was made from.
        """
        if self.is_world_process_zero():
            self.publisher.write_report(self.distillation_facts(), self.state, *args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the plain student with its card, ``distillation.json`` and pictures, in one commit.

        Args:
            commit_message: the message of the commit.
            blocking: wait for it.
            token: by default ``hub_token``, or that of the environment.
            revision: the branch; by default ``hub_revision``, or ``main``.
            private: make a new repository private; by default ``hub_private_repo``.
            **kwargs: as for ``create_model_card``.

        Returns:
            The address of the commit; a future if not ``blocking``.

        Raises:
            PublishingError: the Hub cannot be reached, or does not take it. The student is
                complete in ``output_dir``.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        name = self.hub_model_id or self.publisher.default_name
        kwargs.setdefault("model_name", name.rpartition("/")[2])
        self.create_model_card(**kwargs)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()
        return self.publisher.push(
            str(self.hub_model_id),
            commit_message=commit_message,
            blocking=blocking,
            token=token,
            revision=revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint while training continues (``every_save``)."""
        args, running = self.args, self.push_in_progress
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = running is not None and not running.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        name = str(self.hub_model_id)
        write_report = partial(self.create_model_card, model_name=name.rpartition("/")[2])
        step, folder = self.state.global_step, Path(checkpoint_folder)
        push = self.publisher.push_checkpoint(folder, name, step, write_report, busy=busy)
        if push is not None:
            jobs: Any = [push]
            self.push_in_progress = PushInProgress(jobs)
