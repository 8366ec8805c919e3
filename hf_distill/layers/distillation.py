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

from hf_distill.layers.checks import check_attention, check_checkpointing
from hf_distill.layers.counting import Batch, parts_of
from hf_distill.layers.layer_losses import (
    ATTENTION,
    HIDDEN_STATES,
    LayerLosses,
)
from hf_distill.layers.mapping import (
    LayerPair,
    LayerPairs,
    describe,
    layer_pairs,
    mapping_by_stack,
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
from hf_distill.layers.recording import (
    Recording,
    add_losses,
    has_attention_taps,
    recorded,
    tapped,
)
from hf_distill.layers.samples import TeacherRecorderCallback
from hf_distill.layers.settling import RunTeacher, SampledStates
from hf_distill.layers.similarity import suggest_layer_pairs
from hf_distill.layers.stacks import STACKS, Stack, stacks_of
from hf_distill.training_args import DistillationTrainingArguments

logger = logging.getLogger(__name__)


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
        self.compared = [k for k, weight in args.intermediate_weights.items() if weight > 0]
        """The losses that have a weight when training is prepared, by their names."""
        self.pairs: dict[str, list[LayerPair]] = {}
        """The layers that are compared or recorded, by stack; none until that is settled."""
        self._args = args
        self._teacher = teacher
        self._callbacks = callbacks
        self._accelerator = accelerator
        theirs, ours = stacks_of(teacher, "teacher"), stacks_of(student, "student")
        if theirs.keys() != ours.keys():
            raise ValueError(
                f"Of teacher ({type(teacher).__name__}) and student ({type(student).__name__}) one "
                "is an encoder with a decoder and the other is not, so their layers cannot be "
                "compared; set hidden_states_loss_weight=0 and attention_loss_weight=0."
            )
        self._stacks = {name: (ours[name], theirs[name]) for name in ours}
        if ATTENTION in self.compared:
            check_attention(args, teacher, student)
        device = next(student.parameters()).device
        self._projections_of = {
            name: Projections(one.width, other.width, seed=args.seed, device=device)
            for name, (one, other) in self._stacks.items()
            if one.width != other.width and HIDDEN_STATES in self.compared
        }
        self._projections: nn.Module | None = self._projections_of.get("")
        if self._projections_of and self._projections is None:
            self._projections = nn.ModuleDict(self._projections_of)
        self._parts = parts_of(student, ours)
        heads = {name: stack.heads for name, stack in theirs.items()}
        self.losses = LayerLosses(
            args, student, self.compared, self._parts, self._projections_of, heads,
            accelerator.autocast,
        )  # fmt: skip
        self._of_teacher: dict[str, Recording] = {}
        self._of_student: dict[str, Recording] = {}
        self._is_attached = False
        self._projections_begun = False
        self._compared_batch: Batch | None = None
        self.similarities: dict[str, Tensor] = {}
        """Linear CKA of stacks paired by ``auto``, ``(student layers + 1, teacher layers + 1)``."""
        self._mappings = mapping_by_stack(args.layer_mapping, list(self._stacks))
        if "auto" not in self._mappings.values():
            self._use({name: self._named_pairs(name) for name in self._mappings})

    # ---- layers --------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left that depends on data; see ``settle``."""
        return bool(self.pairs) and (self._projections is None or self._projections_begun)

    @property
    def layer_pairs(self) -> LayerPairs:
        """The layers that are compared or recorded; none as long as that is not settled."""
        return self.pairs if self.pairs and "" not in self.pairs else self.pairs.get("", [])

    @property
    def similarity(self) -> Tensor | dict[str, Tensor] | None:
        """Linear CKA of the layers, by stack if there are several; only where ``auto`` chose."""
        return self.similarities.get("") if "" in self._stacks else self.similarities or None

    def _named_pairs(self, stack: str) -> list[LayerPair]:
        student, teacher = self._stacks[stack]
        depths = {"student_layers": student.depth, "teacher_layers": teacher.depth}
        try:
            return layer_pairs(self._mappings[stack], **depths)
        except ValueError as error:
            if not stack:
                raise
            raise ValueError(f"Of the {stack}s: {error}") from error

    def _use(self, pairs: dict[str, list[LayerPair]]) -> None:
        if ATTENTION in self.compared and not any(p.student for its in pairs.values() for p in its):
            raise ValueError(
                f"layer_mapping={self._args.layer_mapping!r} has the embedding output alone, which "
                "has no attention to compare; name a layer, or set attention_loss_weight=0."
            )
        self.pairs = pairs
        self._choose_recordings()
        for name, its in pairs.items():
            student, teacher = self._stacks[name]
            depths = {"student_layers": student.depth, "teacher_layers": teacher.depth}
            logger.info(describe(its, self._mappings.get(name), name, **depths))

    def _choose_recordings(self) -> None:
        writes = any(callback.samples_wanted for callback in self._callbacks())
        if writes and "" not in self._stacks:
            raise ValueError(
                "TeacherRecorderCallback writes samples of models with one text, and "
                f"{type(self.student).__name__} has an encoder and a decoder; leave it out "
                "(and --record_steps)."
            )
        self._of_student, self._of_teacher = (
            {part: self._recording(part, side, writes) for part in self._parts} for side in (0, 1)
        )

    def _recording(self, part: str, side: int, writes: bool) -> Recording:
        stack: Stack = self._stacks[STACKS[part]][side]
        layers = frozenset(pair[side] for pair in self.pairs.get(STACKS[part], ()))
        compared = {
            kind for kind in self.compared if part in self.losses.parts_of(kind, self.pairs)
        }
        return Recording(
            layers if writes or HIDDEN_STATES in compared else frozenset(),
            layers - {0} if writes or ATTENTION in compared else frozenset(),
            part,
            len(stack.layers),
        )

    def settle(
        self,
        sample: Callable[[], Iterable[Batch]],
        run_teacher: RunTeacher,
        student_inputs: Callable[[Batch], Batch],
    ) -> None:
        """Settle what depends on data: ``layer_mapping="auto"``, and how projections begin.

        Projections that begin at random would first pull the student away from its own start.

        Args:
            sample: returns some batches, on the device.
            run_teacher: the teacher's forward pass.
            student_inputs: makes the student's inputs of a batch, without labels.

        Raises:
            ValueError: hidden states are not of the same tokens, or are NaN or infinite.
        """
        states = SampledStates(
            self.student, self._parts, self._accelerator, sample, run_teacher, student_inputs
        )
        if not self.pairs:
            pairs = [{name: self._pairs_of(name, states) for name in self._mappings}]
            if self._accelerator.num_processes > 1:
                broadcast_object_list(pairs)
            self._use(pairs[0])
        if not self._projections_begun:
            for name, projections in self._projections_of.items():
                projections.fit(states.of_pairs(name, self.pairs.get(name, ())))
        self._projections_begun = True

    def _pairs_of(self, stack: str, states: SampledStates) -> list[LayerPair]:
        """Pair the layers of a stack; under ``auto`` those that are most alike."""
        if self._mappings[stack] != "auto":
            return self._named_pairs(stack)
        self.similarities[stack] = states.similarity(stack)
        return suggest_layer_pairs(self.similarities[stack])

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
        return self.losses.counters(self.pairs) if self.pairs else {}

    def is_sample_due(self, step: int) -> bool:
        """Whether the batch of this step is to be written."""
        return self._accelerator.is_main_process and any(self._due(step))

    def _due(self, step: int) -> Iterator[TeacherRecorderCallback]:
        return (callback for callback in self._callbacks() if callback.is_sample_due(step))

    def run_teacher(self, batch: Batch, run_teacher: RunTeacher) -> Mapping[str, Tensor]:
        """Return the teacher's outputs for a batch, and record its layers."""
        self.clear()
        with recorded(self._of_teacher):
            outputs = run_teacher(batch, self.further_inputs(self._teacher))
        for recording in self._of_teacher.values():
            recording.record_outputs(outputs, "teacher", self._teacher)
        return outputs

    def further_inputs(self, model: nn.Module) -> dict[str, bool]:
        """Return the further inputs of a model's forward."""
        inputs = {}
        recordings = self._of_teacher.values()
        if any(recording.hidden_layers for recording in recordings):
            inputs["output_hidden_states"] = True
        attends = any(recording.attention_layers for recording in recordings)
        if attends and not has_attention_taps(model):
            inputs["output_attentions"] = True
        return inputs

    @contextmanager
    def compare(self, batch: Batch) -> Iterator[None]:
        """Record the student's forward pass inside, and compare it with the teacher's recording."""
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
        for recording in self._of_student.values():
            recording.record_outputs(outputs, "student", module)

        def losses() -> dict[str, Tensor]:
            return self.losses(self.pairs, self._of_student, self._of_teacher, batch)

        return add_losses(outputs, losses, module)

    def write_sample(self, step: int, batch: Batch) -> None:
        """Write the first row of the batch that was just recorded, for pictures."""
        theirs, ours = self._of_teacher[""], self._of_student[""]
        states = next(iter(ours.hidden_states.values()), None)
        if states is None:
            return  # LayerDrop skipped all of them
        mask = self._parts[""].queries.mask(batch, states.shape[1])
        for callback in self._due(step):
            callback.write_sample(step, batch, mask, self.pairs[""], theirs, ours)

    def clear(self) -> None:
        """Let go of the recordings: the losses keep what their backward pass needs."""
        for recording in (*self._of_teacher.values(), *self._of_student.values()):
            recording.clear()

    def nonfinite_rows(self, batch: Batch) -> Tensor:
        """Bool, ``(rows,)``: where the teacher's recording is not finite."""
        found: Any = False
        for part, recording in self._of_teacher.items():
            if recording.hidden_states:
                last = recording.hidden_states[max(recording.hidden_states)]
            elif recording.attention_layers:
                queries = (call.inputs.query for call in recording.attentions.values())
                first = next(iter((*queries, *recording.attention_maps.values())))
                last = first.transpose(1, 2).flatten(2)
            else:
                continue
            bad = ~torch.isfinite(last.float().sum(-1))
            mask = self._parts[part].queries.mask(batch, last.shape[1])
            found = found | (bad if mask is None else bad & mask).any(-1)
        rows: Tensor = found
        return rows

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write projections and layer pairs next to a checkpoint; every process calls it."""
        write = self._accelerator.is_main_process
        save_projections(folder, self._projections, self.layer_pairs, write=write)

    def load(self, folder: str | os.PathLike[str] | None, *, optional: bool = False) -> None:
        """Read them back; if they are ``optional``, only where there are any.

        Raises:
            ValueError: they are missing, damaged, or of another pair of models.
        """
        if optional and not (folder and (Path(folder) / PROJECTIONS_FILE).exists()):
            return
        pairs = load_projections(str(folder), self._projections)
        self._use(pairs if isinstance(pairs, dict) else {"": pairs})
        self._projections_begun = True
