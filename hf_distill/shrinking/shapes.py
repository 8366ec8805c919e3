"""Shapes that a student of a teacher can have, and the choice among them by measured latency."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_distill.compatibility.origin import keep_record
from hf_distill.files import display_name
from hf_distill.students.depth import choose_layers
from hf_distill.students.families import FeedForward, family_of
from hf_distill.students.sizes import Sizes, set_dropout, student_config, student_sizes
from hf_distill.students.weights import empty_like, find

SHARES = (1.0, 3 / 4, 2 / 3, 1 / 2, 1 / 3, 1 / 4)
"""Of the teacher's layers and of its width; each shape has one of each."""
TIMED_AT_ONCE = 8
_STUDENTS = 4
_STUDENTS_PER_DEPTH = 2
_TO_SPARE = 1.1
"""Times the target that a shape must reach: a student that is served was up to a tenth less fast
than the shortest of several times promised."""
_OPTIMISM = 0.8
"""Shapes are timed from this share of the target on, as arithmetic estimates their speed-up."""


@dataclass(frozen=True, order=True)
class Shape:
    """Sizes of a model, named as ``create_student`` names them."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int

    def __str__(self) -> str:
        """Return the shape in a few words."""
        return (
            f"{self.num_hidden_layers} layers of {self.hidden_size}, feed-forward "
            f"{self.intermediate_size}, {self.num_attention_heads} heads"
        )

    def options(self, teacher: Shape) -> dict[str, int]:
        """Return what ``create_student`` is asked for: the sizes that are not the teacher's."""
        wide = asdict(teacher)
        return {name: size for name, size in asdict(self).items() if size != wide[name]}


@dataclass(frozen=True)
class Target:
    """What a student must reach; ``None`` is not asked for.

    Attributes:
        speedup: the teacher's median latency over the student's.
        max_parameters: parameters, embeddings included.
        max_size_mb: megabytes (10^6 bytes) of the weights as they are saved.
    """

    speedup: float | None = None
    max_parameters: int | None = None
    max_size_mb: float | None = None


@dataclass(frozen=True)
class Timed:
    """A shape, its latency, and the teacher's in the same turns."""

    shape: Shape
    milliseconds: float
    teacher_milliseconds: float
    parameters: int
    divergence: float | None = None
    """KL divergence of the untrained student from the teacher, for those that were made."""
    left_out: str | None = None
    """Why no student of the shape can be made, if that was tried."""

    @property
    def speedup(self) -> float:
        """Return how many times as fast as the teacher it is."""
        return self.teacher_milliseconds / self.milliseconds


@dataclass(frozen=True)
class Candidates:
    """Shapes that the teacher's family allows, the slowest first.

    Attributes:
        teacher: the teacher's own shape.
        shapes: the others, by what a token costs in them.
        costs: multiplications per token.
        parameters: of a model of each shape.
        megabytes: of its weights.
        given: sizes that all of them share, because they were asked for.
    """

    teacher: Shape
    shapes: list[Shape]
    costs: dict[Shape, float]
    parameters: dict[Shape, int]
    megabytes: dict[Shape, float] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)

    @property
    def restriction(self) -> str:
        """Return the requested sizes, to be inserted into a sentence."""
        return f" with {_shown(self.given)}" if self.given else ""

    @property
    def remedy(self) -> str:
        """Return what lifts the restriction, as a part of a list."""
        return f"leave {' and '.join(self.given)} out, " if self.given else ""

    def estimate(self, shape: Shape) -> float:
        """Return the speed-up that the number of multiplications promises."""
        return self.costs[self.teacher] / self.costs[shape]

    def small_enough(self, target: Target) -> list[Shape]:
        """Return the shapes that keep to the target's bounds on the size.

        Raises:
            ValueError: none does; names the smallest.
        """
        most, megabytes = target.max_parameters, target.max_size_mb
        fit = [
            shape
            for shape in self.shapes
            if (most is None or self.parameters[shape] <= most)
            and (megabytes is None or self.megabytes[shape] <= megabytes)
        ]
        if not fit and self.shapes:
            least = min(self.shapes, key=lambda shape: (self.parameters[shape], shape))
            too_many = most is not None and self.parameters[least] > most
            bounds = f"max_parameters={most}" if too_many else f"max_size_mb={megabytes}"
            raise ValueError(
                f"{bounds}: no student of this teacher{self.restriction} is so small. The smallest "
                f"has {least}: {self.parameters[least]:,} parameters, {self.megabytes[least]:.1f} "
                f"MB. Raise the bound, {self.remedy}or trim the vocabulary (hf-distill "
                "create-student --trim_vocabulary)."
            )
        return fit


def candidate_shapes(
    teacher: PreTrainedModel,
    length: int,
    fixed: Mapping[str, int | None] | None = None,
    *,
    search: bool = True,
) -> Candidates:
    """Return the shapes that students of a teacher can have.

    Args:
        teacher: with its weights, or on the meta device.
        length: tokens of an input, for the cost of attention.
        fixed: sizes that are given, by their names in ``Shape``; ``None`` is not given.
        search: try several values of those that are not given; else they are the teacher's, and the
            neurons of a narrower student fall with its width.

    Raises:
        ValueError: the teacher's family is not known, or a size that is given cannot be.
    """
    given = {name: size for name, size in (fixed or {}).items() if size is not None}
    config: Any = teacher.config
    family = family_of(config)
    wide = Sizes.of(config, family)
    whole = Shape(len(find(teacher.base_model, family.stack.layers)), *_units(wide))
    if family.depth_only and (cannot := sorted(given.keys() - {"num_hidden_layers"})):
        raise ValueError(
            f"{cannot[0]}={given[cannot[0]]}: students of {config.model_type} models have fewer "
            f"layers, not narrower ones, as {family.depth_only}. Leave it out."
        )
    free = family.free_head_size is not None
    if "num_hidden_layers" in given:
        depths = [given["num_hidden_layers"]]
        choose_layers(None, depths[0], whole.num_hidden_layers)  # which checks it
    else:
        depths = _grid(whole.num_hidden_layers) if search else [whole.num_hidden_layers]
    if "hidden_size" in given:
        widths = [given["hidden_size"]]
    elif family.depth_only or not search:
        widths = [wide.hidden_size]
    else:
        unit = 8 if free else wide.head_size
        widths = [unit * number for number in _grid(wide.hidden_size // unit)]
        widths = [wide.hidden_size, *widths[1:]]
    found: dict[Shape, Any] = {}
    errors: list[ValueError] = []
    for depth, width in itertools.product(depths, widths):
        usual = max(1, round(wide.intermediate_size * width / wide.hidden_size))
        neurons = [given["intermediate_size"]] if "intermediate_size" in given else [usual]
        if "intermediate_size" not in given and not family.depth_only and search:
            neurons.append(max(1, usual // 2))
        for number in neurons:
            try:
                sizes = student_sizes(
                    wide,
                    hidden_size=width,
                    intermediate_size=number,
                    num_attention_heads=given.get("num_attention_heads"),
                    head_size_is_free=free,
                )
                shape = Shape(depth, *_units(sizes))
                found[shape] = shape_config(teacher, shape)
            except ValueError as error:
                errors.append(error)
    if errors and not found:
        raise errors[0]
    if given and set(found) == {whole}:
        raise ValueError(
            f"{_shown(given)}: these are the sizes of the teacher; choose smaller ones."
        )
    found.pop(whole, None)
    configs = {whole: config, **found}
    counts = {shape: _parameters(teacher, one) for shape, one in configs.items()}
    costs = {shape: _cost(teacher, shape, one, length) for shape, one in configs.items()}
    size = teacher.dtype.itemsize
    return Candidates(
        teacher=whole,
        shapes=sorted(found, key=lambda shape: (-costs[shape], shape)),
        costs=costs,
        parameters=counts,
        megabytes={shape: count * size / 1e6 for shape, count in counts.items()},
        given=given,
    )


def shape_config(teacher: PreTrainedModel, shape: Shape) -> Any:
    """Return the configuration of a student of a shape.

    Raises:
        ValueError: the family does not have such models.
    """
    config: Any = teacher.config
    family = family_of(config)
    sizes = student_sizes(
        Sizes.of(config, family),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        head_size_is_free=family.free_head_size is not None,
    )
    whole = len(find(teacher.base_model, family.stack.layers))
    number = None if shape.num_hidden_layers == whole else shape.num_hidden_layers
    kept, decoder_kept = (
        None
        if stack is None or (layers := find(teacher.base_model, stack.layers)) is None
        else choose_layers(None, number, len(layers))
        for stack in (family.stack, family.decoder)
    )
    return student_config(config, family, sizes, kept or [], decoder_kept)


def random_model(
    teacher: PreTrainedModel, shape: Shape, dropout: float | None = None
) -> PreTrainedModel:
    """Return a model of a shape with random weights: as fast as a student, and cheap to make."""
    config = shape_config(teacher, shape)
    set_dropout(config, dropout)
    model: Any = empty_like(teacher, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
    made: PreTrainedModel = model.to(device=teacher.device, dtype=teacher.dtype).eval()
    keep_record(made, {"teacher": display_name(str(teacher.name_or_path))})
    return made


def choose_shape(
    candidates: Candidates,
    target: Target,
    time_shapes: Callable[[Sequence[Shape]], Mapping[Shape, tuple[float, float]]],
    divergence: Callable[[Shape], float],
) -> tuple[Timed, list[Timed]]:
    """Choose the shape that reaches the target and whose untrained student is nearest the teacher.

    Shapes are timed a few at once, in the order of their arithmetic from the target on (by their
    size if no speed-up is asked for), until four students were made, two per depth, or the shapes
    run out. A shape must be a tenth faster than the target; those that are little faster come
    first. What reaches a speed-up is timed again, and that counts.

    Args:
        candidates: the shapes.
        target: what they must reach.
        time_shapes: returns the milliseconds of models of some shapes, and the teacher's in the
            same turns.
        divergence: makes a student and returns its KL divergence from the teacher; a
            ``ValueError`` tells why there is none.

    Returns:
        The choice, and all that were timed, the slowest first. Of equal divergences the deeper,
        then the wider shape wins.

    Raises:
        ValueError: no shape reaches the target (names the fastest), or no student can be made.
    """
    shapes = candidates.small_enough(target)
    if not shapes:
        raise ValueError(
            f"The teacher, {candidates.teacher}, cannot be made smaller: it has one layer, and its "
            "family cannot be made narrower."
        )
    order = shapes
    if target.speedup is None:
        order = sorted(shapes, key=lambda shape: (-candidates.parameters[shape], shape))
    else:
        hopeful = [s for s in shapes if candidates.estimate(s) >= _OPTIMISM * target.speedup]
        # The fastest, if not even arithmetic promises enough: the error names its speed-up.
        order = hopeful or shapes[-1:]
    timed: dict[Shape, Timed] = {}
    made: list[Timed] = []

    def has_its_students(shape: Shape) -> bool:
        depths = [one.shape.num_hidden_layers for one in made]
        return depths.count(shape.num_hidden_layers) == _STUDENTS_PER_DEPTH

    least = _TO_SPARE * (target.speedup or 0)
    while order and len(made) < _STUDENTS:
        chunk = _timed(candidates, order[:TIMED_AT_ONCE], time_shapes)
        timed |= {one.shape: one for one in chunk}
        reaching = [one for one in chunk if one.speedup >= least]
        if target.speedup is not None and reaching:
            # Again: of many shapes some reach a target by luck.
            again = _timed(candidates, [one.shape for one in reaching], time_shapes)
            timed |= {one.shape: one for one in again}
            reaching = [one for one in again if one.speedup >= least]
        for one in sorted(reaching, key=lambda one: (one.speedup, one.shape)):
            if has_its_students(one.shape) or len(made) == _STUDENTS:
                continue
            try:
                timed[one.shape] = replace(one, divergence=divergence(one.shape))
                made.append(timed[one.shape])
            except ValueError as error:
                timed[one.shape] = replace(one, left_out=str(error))
        order = [shape for shape in order[TIMED_AT_ONCE:] if not has_its_students(shape)]
    if not made:
        raise ValueError(_why_not(candidates, list(timed.values()), target))
    best = min(made, key=lambda one: (one.divergence, [-size for size in astuple(one.shape)]))
    return best, sorted(timed.values(), key=lambda one: (-candidates.costs[one.shape], one.shape))


def _why_not(candidates: Candidates, table: Sequence[Timed], target: Target) -> str:
    """Explain that nothing can be chosen of the shapes that were timed."""
    for one in table:
        if one.left_out is not None:
            reaching = "" if target == Target() else " of a shape that reaches the target"
            return f"No student{candidates.restriction}{reaching} can be made: {one.left_out}"
    fastest = max(table, key=lambda one: (one.speedup, one.shape))
    return (
        f"speedup={target.speedup:g}: no student of this teacher{candidates.restriction} reaches "
        f"it here with {_TO_SPARE - 1:.0%} to spare. The fastest has {fastest.shape}: "
        f"{fastest.speedup:.2f} times as fast as the teacher ({fastest.milliseconds:.1f} against "
        f"{fastest.teacher_milliseconds:.1f} ms). Ask for less, {candidates.remedy}or export with "
        "8-bit weights too."
    )


def _timed(
    candidates: Candidates,
    shapes: Sequence[Shape],
    time_shapes: Callable[[Sequence[Shape]], Mapping[Shape, tuple[float, float]]],
) -> list[Timed]:
    return [
        Timed(shape, own, teacher, candidates.parameters[shape])
        for shape, (own, teacher) in time_shapes(shapes).items()
    ]


def _shown(given: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in given.items())


def _grid(most: int) -> list[int]:
    return sorted({max(1, round(share * most)) for share in SHARES}, reverse=True)


def _units(sizes: Sizes) -> tuple[int, int, int]:
    return sizes.hidden_size, sizes.intermediate_size, sizes.heads


def _parameters(teacher: PreTrainedModel, config: Any) -> int:
    with torch.device("meta"):
        model: Any = empty_like(teacher, config)
    model.tie_weights(recompute_mapping=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _cost(teacher: PreTrainedModel, shape: Shape, config: Any, length: int) -> float:
    """Return the multiplications per token of an input."""
    family = family_of(config)
    sizes = Sizes.of(config, family)
    heads, groups = sizes.heads * sizes.head_size, sizes.groups * sizes.head_size
    attention = 2 * sizes.hidden_size * (heads + groups) + 2 * length * heads
    first = find(teacher.base_model, family.stack.layers)[0]
    readers = [
        part
        for block in family.stack.blocks
        if isinstance(block, FeedForward)
        for part in block.readers
        if find(first, part.path) is not None
    ]
    matrices = 1 + (len(readers) or 1)
    layer = attention + matrices * sizes.hidden_size * sizes.intermediate_size
    output = 0 if teacher.get_output_embeddings() is None else config.vocab_size
    return shape.num_hidden_layers * layer + output * sizes.hidden_size
