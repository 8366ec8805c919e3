"""What ``DistillationTrainer`` needs for intermediate layers: taps, projections and losses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from hf_distill.layers.callback import TeacherRecorderCallback
from hf_distill.layers.capture import Recording
from hf_distill.layers.counting import TokenCount
from hf_distill.layers.losses import ATTENTION, HIDDEN_STATES, IntermediateLosses
from hf_distill.layers.mapping import (
    LayerPair,
    LayerSimilarity,
    describe,
    layer_pairs,
    suggest_layer_pairs,
)
from hf_distill.layers.projections import (
    PROJECTIONS_FILE,
    Projections,
    attached,
    check_optimizer,
    join_optimizer,
    load_projections,
    save_projections,
)
from hf_distill.layers.recorder import LayerRecorder
from hf_distill.layers.sizes import Sizes, check_attention, check_checkpointing
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

_OVERWHELMING = 10.0
"""So many times the other, one of two weighted losses decides alone what is learned."""

RunTeacher = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Tensor]]
"""(batch, further inputs) -> outputs."""


class IntermediateDistillation:
    """The intermediate layers of one pair: recorded, projected, compared, saved.

    Args:
        args: which losses, layers and weights.
        teacher: the teacher.
        student: the model that is trained, not yet wrapped.
        callbacks: those that write samples, asked for whenever they matter.
        accelerator: precision and processes.

    Raises:
        ValueError: the layers of this pair cannot be compared as the arguments say.
    """

    def __init__(
        self,
        args: DistillationTrainingArguments,
        teacher: nn.Module,
        student: nn.Module,
        callbacks: Callable[[], Sequence[TeacherRecorderCallback]],
        accelerator: Accelerator,
    ) -> None:
        self._args = args
        self._teacher = teacher
        self.student = student
        self._recorder = LayerRecorder(teacher, student)
        self._callbacks = callbacks
        self._accelerator = accelerator
        self._sizes = {
            "teacher": Sizes.of(teacher, "teacher"),
            "student": Sizes.of(student, "student"),
        }
        # A callback may set a weight to 0 and back.
        self.compared = {k for k, weight in args.intermediate_weights.items() if weight > 0}
        """The losses that have a weight when training is prepared, by their names."""
        if ATTENTION in self.compared:
            check_attention(args, teacher, student)
        self._projections: Projections | None = None
        widths = {who: size.width for who, size in self._sizes.items()}
        if widths["teacher"] != widths["student"] and HIDDEN_STATES in self.compared:
            self._projections = Projections(
                widths["student"],
                widths["teacher"],
                seed=args.seed,
                device=next(student.parameters()).device,
            )
        self._count = TokenCount(student)
        self._losses: IntermediateLosses | None = None
        self._balance_checked = False
        self._depths = {f"{who}_layers": size.layers for who, size in self._sizes.items()}
        if args.layer_mapping != "auto":
            self._use(layer_pairs(args.layer_mapping, **self._depths))

    # ---- layers --------------------------------------------------------------------------------

    @property
    def pairs_are_known(self) -> bool:
        """Whether it is settled which layers are compared; ``auto`` looks at data first."""
        return self._losses is not None

    def _use(self, pairs: list[LayerPair]) -> None:
        if ATTENTION in self.compared and not any(pair.student for pair in pairs):
            raise ValueError(
                f"layer_mapping={self._args.layer_mapping!r} has the embedding output alone, which "
                "has no attention to compare; name a layer, or set attention_loss_weight=0."
            )
        self._record(pairs)
        self._losses = IntermediateLosses(
            self._args,
            pairs,
            self.compared,
            self._projections,
            self._count,
            self._sizes["teacher"].heads,
            self._accelerator.autocast,
            self._zero,
        )
        logger.info(describe(pairs, self._args.layer_mapping, **self._depths))

    def _record(self, pairs: Sequence[LayerPair]) -> None:
        writes = any(callback.samples_wanted for callback in self._callbacks())
        self._recorder.choose(
            pairs,
            hidden_states=writes or HIDDEN_STATES in self.compared,
            attentions=writes or ATTENTION in self.compared,
        )

    def _zero(self) -> Tensor:
        """0, with a gradient of 0."""
        parameters = sorted(self.student.parameters(), key=lambda p: not p.requires_grad)
        return parameters[0].flatten()[:0].sum().float()

    @property
    def pairs(self) -> list[LayerPair]:
        """Which layers are compared or recorded; none as long as that is not settled."""
        return list(self._recorder.pairs)

    def choose_pairs(self, batches: Iterable[Mapping[str, Any]], run_teacher: RunTeacher) -> None:
        """``layer_mapping="auto"``: pair the layers that are most alike on these batches.

        Args:
            batches: on the device, without labels.
            run_teacher: the teacher's forward pass.
        """
        similarity = LayerSimilarity()
        was_training = self.student.training
        self.student.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    hidden = {"output_hidden_states": True}
                    theirs: Any = run_teacher(batch, hidden)["hidden_states"]
                    with self._accelerator.autocast():
                        ours = self.student(**batch, **hidden)["hidden_states"]
                    mask = self._count.mask(batch, ours[0].shape[1])
                    similarity.add(ours, theirs, token_mask=mask)
        finally:
            self.student.train(was_training)
        self.similarity = similarity.matrix()
        pairs = [suggest_layer_pairs(self.similarity)]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(pairs)
        self._use(pairs[0])

    similarity: Any = None
    """``(student layers + 1, teacher layers + 1)``, linear CKA, if ``auto`` chose the layers."""

    def join_optimizer(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """Let an optimizer that was made without the projections train them.

        Args:
            optimizer: a caller's own.
            scheduler: of its learning rates; ``None`` if it is made later.

        Raises:
            ValueError: the scheduler cannot be extended to them.
        """
        if self._projections is not None:
            join_optimizer(self._projections, optimizer, scheduler)

    def check_first_batch(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Check what is only known once training has begun.

        Args:
            optimizer: that of the training, if it has the parameters as they are.

        Raises:
            ValueError: it was made without the projections, or checkpointing hides attentions.
        """
        if self._projections is not None and optimizer is not None:
            check_optimizer(self._projections, optimizer)
        if ATTENTION in self.compared:
            check_checkpointing(self.student)

    # ---- a step --------------------------------------------------------------------------------

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, taps are set in both models and projections are a part of the student."""
        if self._losses is not None:
            self._record(self._recorder.pairs)  # a callback may have been added
        with attached(self.student, self._projections), self._recorder.attached():
            yield

    def counters(self) -> dict[str, Callable[[Mapping[str, Any]], int | Tensor]]:
        """What each loss is a mean over: counts the items of a batch."""
        return {} if self._losses is None else self._losses.counters()

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this step is to be written."""
        return self._accelerator.is_main_process and any(self._due(step))

    def _due(self, step: int) -> Iterator[TeacherRecorderCallback]:
        return (callback for callback in self._callbacks() if callback.is_sample_due(step))

    def run_teacher(
        self, batch: Mapping[str, Any], run_teacher: RunTeacher
    ) -> Mapping[str, Tensor]:
        """The teacher's outputs for a batch, with its layers recorded."""
        with self._recorder.recording_teacher():
            outputs = run_teacher(batch, self._recorder.extra_inputs(self._teacher))
        self._recorder.teacher.take_outputs(outputs, "teacher", self._teacher)
        return outputs

    def student_inputs(self) -> dict[str, bool]:
        """What the student's forward must be asked for."""
        return self._recorder.extra_inputs(self.student)

    def compare(self, batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        """The student's forward pass inside is recorded and compared with the teacher's.

        Args:
            batch: as the student gets it.
        """
        losses = self._losses
        assert losses is not None

        def compare(student: Recording, teacher: Recording) -> dict[str, Tensor]:
            return losses(student, teacher, batch)

        return self._recorder.recording_student(compare)

    def check_balance(self, losses: Mapping[str, float]) -> None:
        """Warn, at most once, if one of two losses is so large that the other counts for nothing.

        Args:
            losses: means of the first steps, by their names in the log.
        """
        if self._balance_checked or not losses or not self._accelerator.is_main_process:
            return
        self._balance_checked = True
        weights = self._args.intermediate_weights
        parts = {name: weight * losses.get(f"loss_{name}", 0.0) for name, weight in weights.items()}
        smaller, larger = sorted(parts, key=parts.__getitem__)
        if parts[smaller] <= 0:
            return
        ratio = parts[larger] / parts[smaller]
        if ratio >= _OVERWHELMING:
            logger.warning(
                "Multiplied by its weight, loss_%s is %.0f times loss_%s and decides almost alone "
                "what is learned: %s_loss_weight=%.1g (now %.4g) would make them equal.",
                *(larger, ratio, smaller, larger, weights[larger] / ratio, weights[larger]),
            )

    def write_sample(self, step: int, batch: Mapping[str, Any]) -> None:
        """Write the first row of the batch that was just recorded, for pictures."""
        states = next(iter(self._recorder.student.hidden_states.values()), None)
        if states is None:
            return  # LayerDrop skipped all of them
        mask = self._count.mask(batch, states.shape[1])
        for callback in self._due(step):
            callback.write_sample(step, batch, mask, self._recorder)

    def forget(self) -> None:
        """Let go of what was recorded: the losses keep what their backward pass needs."""
        self._recorder.teacher.clear()
        self._recorder.student.clear()

    def bad_rows(self, batch: Mapping[str, Any]) -> Tensor:
        """Bool, ``(rows,)``: where what was recorded of the teacher is not finite."""
        recording = self._recorder.teacher
        if recording.hidden_states:
            last = recording.hidden_states[max(recording.hidden_states)]
        else:
            last = next(iter(_queries(recording)))
        bad = ~torch.isfinite(last.float().sum(-1))
        mask = self._count.mask(batch, last.shape[1])
        return (bad if mask is None else bad & mask).any(-1)

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write projections and layer pairs beside a checkpoint; every process calls it."""
        write = self._accelerator.is_main_process
        save_projections(folder, self._projections, self._recorder.pairs, write=write)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read them back.

        Raises:
            ValueError: they are missing, damaged, or of another pair of models.
        """
        self._use(load_projections(folder, self._projections))

    def load_best(self, folder: str | os.PathLike[str] | None) -> None:
        """Read those of the best checkpoint, if it has any."""
        if folder is not None and (Path(folder) / PROJECTIONS_FILE).exists():
            self.load(folder)


def _queries(recording: Recording) -> Iterator[Tensor]:
    for call in recording.attentions.values():
        yield call.inputs.query.transpose(1, 2).flatten(2)
    for maps in recording.attention_maps.values():
        yield maps.transpose(1, 2).flatten(2)
