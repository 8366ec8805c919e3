"""``IntermediateDistillation``: the layers of one pair, from recording to losses."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from hf_distill.layers.layer_losses import (
    ATTENTION,
    HIDDEN_STATES,
    LayerLosses,
    check_hidden_states,
)
from hf_distill.layers.mapping import LayerPair, describe, layer_pairs
from hf_distill.layers.projections import (
    PROJECTIONS_FILE,
    Projections,
    attached,
    check_optimizer,
    join_optimizer,
    load_projections,
    save_projections,
)
from hf_distill.layers.recording import (
    Recording,
    add_losses,
    has_attention_taps,
    recorded,
    tapped,
)
from hf_distill.layers.samples import TeacherRecorderCallback
from hf_distill.layers.similarity import LayerSimilarity, suggest_layer_pairs
from hf_distill.layers.sizes import Sizes, check_attention, check_checkpointing
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)

_OVERWHELMING = 10.0
"""So many times the other, one of two weighted losses decides alone what is learned."""

Batch = Mapping[str, Any]
RunTeacher = Callable[[Batch, Mapping[str, Any]], Mapping[str, Tensor]]
"""(batch, further inputs) -> outputs."""


class IntermediateDistillation:
    """The intermediate layers of one pair: recorded, projected, compared, saved.

    The models keep their own attention (SDPA, flash attention, …). One way, no loops back:
    ``run_teacher`` records the teacher, and inside ``compare`` the student's forward is recorded
    and compared with it; its outputs then hold the losses.

    Args:
        args: which losses, layers and weights.
        teacher: the teacher.
        student: the model that is trained, not yet wrapped.
        callbacks: returns those that write samples.
        accelerator: precision and processes.

    Raises:
        ValueError: the layers of this pair cannot be compared as the arguments say.
    """

    similarity: Tensor | None = None
    """``(student layers + 1, teacher layers + 1)``, linear CKA, if ``auto`` chose the layers."""

    def __init__(
        self,
        args: DistillationTrainingArguments,
        teacher: nn.Module,
        student: nn.Module,
        callbacks: Callable[[], Sequence[TeacherRecorderCallback]],
        accelerator: Accelerator,
    ) -> None:
        self.student = student
        # A callback may set a weight to 0 and back.
        self.compared = {k for k, weight in args.intermediate_weights.items() if weight > 0}
        """The losses that have a weight when training is prepared, by their names."""
        self.pairs: list[LayerPair] = []
        """The layers that are compared or recorded; none as long as that is not settled."""
        self._args = args
        self._teacher = teacher
        self._callbacks = callbacks
        self._accelerator = accelerator
        sizes = Sizes.of(teacher, "teacher"), Sizes.of(student, "student")
        self._depths = {"teacher_layers": sizes[0].layers, "student_layers": sizes[1].layers}
        if ATTENTION in self.compared:
            check_attention(args, teacher, student)
        self._projections: Projections | None = None
        if sizes[0].width != sizes[1].width and HIDDEN_STATES in self.compared:
            device = next(student.parameters()).device
            self._projections = Projections(
                sizes[1].width, sizes[0].width, seed=args.seed, device=device
            )
        self._losses = LayerLosses(
            args, student, self.compared, self._projections, sizes[0].heads, accelerator.autocast
        )
        self._of_teacher, self._of_student = Recording(), Recording()
        self._is_attached = False
        self._projections_begun = False
        self._compared_batch: Batch | None = None
        self._balance_checked = False
        if args.layer_mapping != "auto":
            self._use(layer_pairs(args.layer_mapping, **self._depths))

    # ---- layers --------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left that depends on data; see ``settle``."""
        return bool(self.pairs) and (self._projections is None or self._projections_begun)

    def _use(self, pairs: list[LayerPair]) -> None:
        if ATTENTION in self.compared and not any(pair.student for pair in pairs):
            raise ValueError(
                f"layer_mapping={self._args.layer_mapping!r} has the embedding output alone, which "
                "has no attention to compare; name a layer, or set attention_loss_weight=0."
            )
        self.pairs = pairs
        self._choose_recordings()
        logger.info(describe(pairs, self._args.layer_mapping, **self._depths))

    def _choose_recordings(self) -> None:
        writes = any(callback.samples_wanted for callback in self._callbacks())
        self._of_teacher, self._of_student = (
            Recording(
                layers if writes or HIDDEN_STATES in self.compared else frozenset(),
                layers - {0} if writes or ATTENTION in self.compared else frozenset(),
            )
            for layers in (
                frozenset(pair.teacher for pair in self.pairs),
                frozenset(pair.student for pair in self.pairs),
            )
        )

    def settle(self, sample: Callable[[], Iterable[Batch]], run_teacher: RunTeacher) -> None:
        """Settle what depends on data: ``layer_mapping="auto"``, and how projections begin.

        Projections that begin at random would first pull the student away from its own start.

        Args:
            sample: returns some batches, on the device and without labels.
            run_teacher: the teacher's forward pass.

        Raises:
            ValueError: hidden states are not of the same tokens, or are NaN or infinite.
        """
        if not self.pairs:
            self._choose_pairs(self._hidden_states(sample(), run_teacher))
        if self._projections is not None and not self._projections_begun:
            self._projections.fit(self._states_of_pairs(self._hidden_states(sample(), run_teacher)))
        self._projections_begun = True

    def _hidden_states(
        self, batches: Iterable[Batch], run_teacher: RunTeacher
    ) -> Iterator[tuple[Batch, Sequence[Tensor], Sequence[Tensor]]]:
        """Run both models; yield each batch with all hidden states of student and teacher."""
        asked = {"output_hidden_states": True}
        was_training = self.student.training
        self.student.eval()
        try:
            for batch in batches:
                with torch.no_grad():
                    theirs: Any = run_teacher(batch, asked)["hidden_states"]
                    with self._accelerator.autocast():
                        ours = self.student(**batch, **asked)["hidden_states"]
                yield batch, ours, theirs
        finally:
            self.student.train(was_training)
            # Without a backward pass FSDP2 leaves the outermost weights whole.
            getattr(self.student, "reshard", lambda: None)()

    def _states_of_pairs(
        self, states: Iterable[tuple[Batch, Sequence[Tensor], Sequence[Tensor]]]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the valid tokens of each pair of layers, with the student's layer."""
        for batch, all_ours, all_theirs in states:
            for pair in self.pairs:
                ours, theirs = all_ours[pair.student], all_theirs[pair.teacher]
                check_hidden_states(ours, theirs, pair)
                mask = self._losses.count.mask(batch, ours.shape[1])
                valid = slice(None) if mask is None else mask.flatten()
                yield pair.student, ours.flatten(0, 1)[valid], theirs.flatten(0, 1)[valid]

    def _choose_pairs(
        self, states: Iterable[tuple[Batch, Sequence[Tensor], Sequence[Tensor]]]
    ) -> None:
        """``layer_mapping="auto"``: pair the layers that are most alike."""
        similarity = LayerSimilarity()
        for batch, ours, theirs in states:
            mask = self._losses.count.mask(batch, ours[0].shape[1])
            similarity.add(ours, theirs, token_mask=mask)
        self.similarity = similarity.matrix()
        pairs = [suggest_layer_pairs(self.similarity)]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(pairs)
        self._use(pairs[0])

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
        """Tap both models and make the projections a part of the student inside."""
        if self.pairs:
            self._choose_recordings()  # a callback may have been added
        if self._is_attached:
            yield
            return
        with attached(self.student, self._projections), tapped(self._teacher, self.student):
            hook = self.student.register_forward_hook(torch.compiler.disable(self._after_student))
            self._is_attached = True
            try:
                yield
            finally:
                self._is_attached = False
                hook.remove()

    def counters(self) -> dict[str, Callable[[Batch], int | Tensor]]:
        """Return what counts the items of a batch that each loss is a mean over."""
        return self._losses.counters() if self.pairs else {}

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this step is to be written."""
        return self._accelerator.is_main_process and any(self._due(step))

    def _due(self, step: int) -> Iterator[TeacherRecorderCallback]:
        return (callback for callback in self._callbacks() if callback.is_sample_due(step))

    def run_teacher(self, batch: Batch, run_teacher: RunTeacher) -> Mapping[str, Tensor]:
        """Return the teacher's outputs for a batch, and record its layers."""
        self._of_teacher.clear()
        with recorded(self._of_teacher):
            outputs = run_teacher(batch, self._further_inputs(self._teacher))
        self._of_teacher.record_outputs(outputs, "teacher", self._teacher)
        return outputs

    def student_inputs(self) -> dict[str, bool]:
        """Return the further inputs of the student's forward."""
        return self._further_inputs(self.student)

    def _further_inputs(self, model: nn.Module) -> dict[str, bool]:
        inputs = {}
        if self._of_teacher.hidden_layers:
            inputs["output_hidden_states"] = True
        if self._of_teacher.attention_layers and not has_attention_taps(model):
            inputs["output_attentions"] = True
        return inputs

    @contextmanager
    def compare(self, batch: Batch) -> Iterator[None]:
        """Record the student's forward pass inside, and compare it with the teacher's recording."""
        self._of_student.clear()
        self._compared_batch = batch
        try:
            with recorded(self._of_student):
                yield
        finally:
            self._compared_batch = None

    def _after_student(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        batch = self._compared_batch
        if batch is None:
            return outputs
        self._of_student.record_outputs(outputs, "student", module)

        def losses() -> dict[str, Tensor]:
            return self._losses(self.pairs, self._of_student, self._of_teacher, batch)

        return add_losses(outputs, losses, module)

    def check_balance(self, losses: Mapping[str, float]) -> None:
        """Warn, at most once, if one loss is so large that the other counts for nothing."""
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

    def write_sample(self, step: int, batch: Batch) -> None:
        """Write the first row of the batch that was just recorded, for pictures."""
        states = next(iter(self._of_student.hidden_states.values()), None)
        if states is None:
            return  # LayerDrop skipped all of them
        mask = self._losses.count.mask(batch, states.shape[1])
        for callback in self._due(step):
            callback.write_sample(step, batch, mask, self.pairs, self._of_teacher, self._of_student)

    def clear(self) -> None:
        """Let go of the recordings: the losses keep what their backward pass needs."""
        self._of_teacher.clear()
        self._of_student.clear()

    def nonfinite_rows(self, batch: Batch) -> Tensor:
        """Bool, ``(rows,)``: where the teacher's recording is not finite."""
        recording = self._of_teacher
        if recording.hidden_states:
            last = recording.hidden_states[max(recording.hidden_states)]
        else:
            queries = (call.inputs.query for call in recording.attentions.values())
            first = next(iter((*queries, *recording.attention_maps.values())))
            last = first.transpose(1, 2).flatten(2)
        bad = ~torch.isfinite(last.float().sum(-1))
        mask = self._losses.count.mask(batch, last.shape[1])
        return (bad if mask is None else bad & mask).any(-1)

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write projections and layer pairs next to a checkpoint; every process calls it."""
        write = self._accelerator.is_main_process
        save_projections(folder, self._projections, self.pairs, write=write)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Read them back.

        Raises:
            ValueError: they are missing, damaged, or of another pair of models.
        """
        self._use(load_projections(folder, self._projections))
        self._projections_begun = True

    def load_best(self, folder: str | os.PathLike[str] | None) -> None:
        """Read those of the best checkpoint, if it has any."""
        if folder is not None and (Path(folder) / PROJECTIONS_FILE).exists():
            self.load(folder)
