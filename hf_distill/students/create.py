"""Make a student from a teacher: fewer layers, fewer units, or both."""

from __future__ import annotations

import copy
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from hf_distill._version import __version__
from hf_distill.compatibility.origin import keep_record
from hf_distill.compatibility.tokenizers import vocabulary_size
from hf_distill.files import display_name
from hf_distill.heads import unwrap_peft
from hf_distill.loading import load_fine_tuned, read_config
from hf_distill.restoring import evaluating, preserve_rng_state
from hf_distill.students.calibration import Calibration, TooFewTokensError, read_texts
from hf_distill.students.depth import by_stack, choose_layers, least_missed
from hf_distill.students.families import Family, Stack, family_of
from hf_distill.students.fitting import StackFit
from hf_distill.students.head_fitting import HeadFit
from hf_distill.students.running import Side, unchunked
from hf_distill.students.sentence_embeddings import (
    create_sentence_student,
    is_sentence_transformer,
    load_sentence_transformer,
)
from hf_distill.students.sizes import (
    Sizes,
    check_dropout,
    is_between,
    set_dropout,
    student_config,
    student_sizes,
)
from hf_distill.students.statistics import basis_of, gather
from hf_distill.students.vocabulary import Trimming
from hf_distill.students.weights import (
    copy_weights,
    empty_like,
    find,
    match_precision,
    unfitted,
)

CALIBRATION_TOKENS = 8192
INITIALIZATIONS = ("auto", "least_squares", "copy")
_AUTO_TOKENS = 2048
"""The search for layers runs the teacher many times, so it gets fewer tokens."""


@torch.inference_mode(False)  # whose tensors cannot be trained
def create_student(
    teacher: PreTrainedModel | str | os.PathLike[str],
    *,
    num_hidden_layers: int | None = None,
    layers: str | Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    calibration_data: Any = None,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    vocabulary_from: Iterable[str | Sequence[str]] | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    initialization: str = "auto",
    dropout: float | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    r"""Make a student from a teacher, with fewer layers, narrower ones, or both.

    The student is a plain model of the teacher's class, with its head, labels, tokenizer and
    special tokens. Fewer layers alone are copies. A narrower student is fitted to the teacher by
    least squares, weight by weight in the order of the forward pass, on its own states, without
    gradients and without labels: with a basis P of the teacher's hidden states (principal
    components of all of them together),

    - embeddings are :math:`E P^\top`;
    - queries, keys, values and the first map of feed-forward networks are the teacher's rows after
      :math:`\operatorname{ridge}(x \to x_t)`, from the student's states x to the teacher's;
    - the maps back to the hidden states are :math:`\operatorname{ridge}(c \to P u - x)`, where c
      are the units' outputs and u is the teacher's sum, so that each of them also repairs what was
      lost before it;
    - the scale and shift of each unit of a LayerNorm are also a regression. Where norms come before
      the blocks, the maps behind them take these up, and tokens count by the directions of their
      states instead of their sizes.

    Kept are the heads with the largest mean norm of their context, and the neurons with the largest
    root mean square times the norm of the weights that read them. Following SliceGPT (Ashkboos et
    al. 2024, section 3: the basis) and Kwon et al. 2022 (section 4.3: least squares, layer by
    layer).

    Args:
        teacher: a model with or without a head, a folder or a Hub id. It is not changed. Of a
            ``SentenceTransformer`` (a module, a folder or a Hub id) the encoder is made smaller:
            its pooling stays, and after it a ``Dense``, fitted on ``calibration_data`` (texts),
            maps to the teacher's width.
        num_hidden_layers: of the student; by default as many as ``layers`` names, or the teacher
            has.
        layers: which of the teacher's layers to keep: a list, from 0, or, of N layers,
            ``"uniform"`` (the default: layers ⌊i·N/M⌋), ``"first"``, ``"last"``, or ``"auto"``,
            which removes one after the other that without which the teacher's output on
            ``calibration_data`` changes least. An encoder and its decoder each keep the same number
            or the same list; ``{"encoder": [0, 2], "decoder": [0]}`` gives a list for each, and a
            stack that it does not name keeps all of its layers.
        hidden_size: the width of the student; in most families a multiple of the size of a head.
        intermediate_size: neurons of each feed-forward network; by default they fall with the
            width.
        num_attention_heads: heads of each layer; by default they fall with the width. The size of a
            head stays.
        calibration_data: examples of what the student will see: a data set of features, a list of
            texts, or the path of a text file with a text per line. Labels are not used, except as
            the target that the decoder of an encoder reads (or ``decoder_input_ids``). Needed for
            a narrower student and for ``layers="auto"``.
        data_collator: makes a batch of rows; by default they are padded with ``processing_class``.
        processing_class: the tokenizer; texts need it.
        vocabulary_from: texts whose tokens are kept, and no others (``trim_vocabulary``); the
            student's tokenizer is ``hf_distill.students.tokenizer_of(student)`` then.
        calibration_tokens: how many tokens to use, in rows drawn with ``seed``; for
            ``layers="auto"`` no more than 2,048.
        initialization: ``"copy"`` copies weights, which only works in depth; ``"least_squares"``
            fits all of them, in depth as well; ``"auto"`` copies for depth alone, and fits as soon
            as a width changes.
        dropout: every probability of dropout in the student's configuration that is a number; by
            default they are the teacher's. With 0 its training steps are faster, and it needs none:
            it begins in its teacher's states and learns soft targets.
        seed: of the rows of the calibration data.

    Returns:
        The student, in evaluation mode, in the teacher's precision and on its device; it is fitted
        on the CPU. A ``SentenceTransformer`` if the teacher is one.

    Raises:
        ValueError: the teacher or its family cannot be cut so, a size does not go with another, or
            there are too few tokens; names the argument.

    Example::

        >>> student = create_student(
        ...     teacher, hidden_size=192, calibration_data=features, processing_class=tokenizer
        ... )  # doctest: +SKIP
    """
    if initialization not in INITIALIZATIONS:
        raise ValueError(
            f"initialization={initialization!r} is not one of {', '.join(INITIALIZATIONS)}."
        )
    if not is_between(calibration_tokens, 1, sys.maxsize):
        raise ValueError(f"calibration_tokens={calibration_tokens!r} is not an integer above 0.")
    check_dropout(dropout)
    if not is_between(seed, 0, 2**32 - 1):
        raise ValueError(f"seed={seed!r} is not an integer from 0 to 2**32 - 1.")
    if isinstance(layers, str) and layers == "auto" and num_hidden_layers is None:
        raise ValueError("layers='auto' needs num_hidden_layers, the number of layers to keep.")
    if isinstance(teacher, str | os.PathLike):
        teacher = load_sentence_transformer(os.fspath(teacher)) or teacher
    if is_sentence_transformer(teacher):
        for name, value in (
            ("vocabulary_from", vocabulary_from),
            ("data_collator", data_collator),
            ("processing_class", processing_class),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} is not used with a SentenceTransformer, which has its own tokenizer "
                    "and keeps its vocabulary: leave it out."
                )
        if isinstance(calibration_data, str | os.PathLike):
            calibration_data = read_texts(calibration_data)
        create = functools.partial(
            create_student,
            num_hidden_layers=num_hidden_layers,
            layers=layers,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_attention_heads=num_attention_heads,
            calibration_data=calibration_data,
            calibration_tokens=calibration_tokens,
            initialization=initialization,
            dropout=dropout,
            seed=seed,
        )
        texts = () if calibration_data is None else calibration_data
        student: PreTrainedModel = create_sentence_student(teacher, texts, create, seed=seed)
        return student
    if vocabulary_from is not None and processing_class is None:
        raise ValueError("vocabulary_from is trimmed with the tokenizer: pass processing_class.")
    model = load_whole(teacher)
    damaged = unfitted(model)
    if damaged:
        raise ValueError(
            f"teacher has weights that are not finite: {', '.join(damaged)}. Load it again, or "
            "train it without overflow."
        )
    trimming = None
    if vocabulary_from is not None:
        trimming = Trimming(model, processing_class, vocabulary_from, name="vocabulary_from")
    family = family_of(model.config)
    wide = Sizes.of(model.config, family)
    stacks = {
        stack: len(find(model.base_model, stack.layers))
        for stack in (family.stack, family.decoder)
        if stack is not None and find(model.base_model, stack.layers) is not None
    }
    if family.stack not in stacks:
        raise ValueError(
            f"teacher is a {type(model).__name__}, a decoder without its encoder, which "
            "create_student does not know: pass a model with both."
        )
    choices = by_stack(layers, num_hidden_layers) if len(stacks) > 1 else (layers,)
    chosen = [
        choose_layers(choice, num_hidden_layers, number, stack.first_layer)
        for (stack, number), choice in zip(stacks.items(), choices, strict=True)
    ]
    searches = None in chosen
    narrow = student_sizes(
        wide,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        head_size_is_free=family.free_head_size is not None,
    )
    if initialization == "copy" and narrow != wide:
        raise ValueError(
            "initialization='copy' keeps the widths: leave out hidden_size, intermediate_size "
            "and num_attention_heads, or choose 'least_squares'."
        )
    if family.depth_only and (narrow != wide or searches or initialization == "least_squares"):
        raise ValueError(
            f"create_student copies layers of {model.config.model_type} models: "
            f"{family.depth_only}. Leave out hidden_size, intermediate_size, num_attention_heads, "
            "layers='auto' and initialization='least_squares'."
        )
    fewer = [None if kept is None else len(kept) for kept in chosen] != list(stacks.values())
    fits = narrow != wide or (fewer and initialization == "least_squares")
    for name, other in family.same_sizes if fits else ():
        if getattr(model.config, name) != getattr(model.config, other):
            raise ValueError(
                f"teacher has {name}={getattr(model.config, name)} and "
                f"{other}={getattr(model.config, other)}; create_student fits encoders and "
                "decoders of equal sizes only: leave out hidden_size, intermediate_size, "
                "num_attention_heads and initialization='least_squares'."
            )
    device, calibration = model.device, None
    if fits and device.type != "cpu":
        # Sums are in float64 on the CPU; with everything there, no map meets one elsewhere.
        model = copy.deepcopy(model).cpu()
    if fits or searches:
        if calibration_data is None:
            why = "layers='auto'" if searches else "a narrower or fitted student"
            raise ValueError(f"calibration_data is needed for {why}.")
        calibration = Calibration(
            calibration_data,
            model,
            data_collator=data_collator,
            processing_class=processing_class,
            seed=seed,
        )
    elif calibration_data is not None:
        choice = "choose initialization='least_squares' or layers='auto'"
        raise ValueError(
            "calibration_data is not used where layers are copied: leave it out, or "
            f"{choice if fewer else 'make the student smaller than the teacher'}."
        )
    with evaluating(model), torch.no_grad(), preserve_rng_state():
        set_seed(seed)
        if searches:
            assert calibration is not None and num_hidden_layers is not None  # as checked above
            sides = [Side(model, stack, wide) for stack in stacks]
            tokens = min(calibration_tokens, _AUTO_TOKENS)
            chosen = _search(sides, calibration, num_hidden_layers, tokens)
        kept_layers = [kept for kept in chosen if kept is not None]
        student = _empty_student(model, family, narrow, kept_layers, dropout)
        kept = {stack: layers for stack, layers in zip(stacks, kept_layers, strict=True)}
        places = {stack.layers: layers for stack, layers in kept.items()}
        if not fits:
            match_precision(model, student, places)
        copy_weights(model, student, places)
        used = 0
        if fits and calibration is not None:
            with unchunked(model), unchunked(student):
                used = _fit(model, student, family, kept, calibration, calibration_tokens)
    missing = unfitted(student)
    if missing:
        raise ValueError(
            f"The teacher, a {type(model).__name__}, has parts that create_student cannot make "
            f"narrower: {', '.join(missing)}. Keep hidden_size, or take a teacher without them."
        )
    if trimming is not None:
        student = trimming.of(student)
    match_precision(model, student, places)
    module: nn.Module = student
    module.to(device)
    overflown = unfitted(student)
    if overflown:
        raise ValueError(
            f"teacher is in {model.dtype}, which cannot hold the student's {', '.join(overflown)}: "
            "load it with dtype=torch.float32."
        )
    keep_record(
        student,
        {
            "teacher": display_name(model.name_or_path or type(model).__name__),
            "model": type(model).__name__,
            "layers": kept[family.stack],
            **({"decoder_layers": kept[family.decoder]} if family.decoder in kept else {}),
            "teacher_sizes": {"num_hidden_layers": stacks[family.stack], **asdict(wide)},
            "sizes": {"num_hidden_layers": len(kept[family.stack]), **asdict(narrow)},
            "parameters": sum(parameter.numel() for parameter in student.parameters()),
            "initialization": "least_squares" if fits else "copy",
            "calibration_tokens": used,
            "vocab_size": vocabulary_size(student),
            "seed": seed,
            "hf_distill_version": __version__,
        },
    )
    return student


def load_whole(teacher: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    """Return a teacher of which a student can be made: a module as it is, or loaded with its head.

    Raises:
        ValueError: it has adapters, is quantised or sharded, or cannot be loaded.
    """
    if isinstance(teacher, str | os.PathLike):
        source = os.fspath(teacher)
        config = read_config(source, "teacher")
        auto_model = (config.architectures or ["AutoModel"])[0]
        name = f"teacher={source!r}"
        teacher = load_fine_tuned(auto_model, source, task="its task", name=name, exported=False)
    if unwrap_peft(teacher) is not teacher:
        raise ValueError(
            f"teacher is a {type(teacher).__name__} with PEFT adapters: pass "
            "teacher.merge_and_unload() instead."
        )
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError(
            f"teacher is a {type(teacher).__name__}, not a model of transformers: pass the model "
            "inside it, its folder or its Hub id."
        )
    if getattr(teacher, "_hf_peft_config_loaded", False):
        raise ValueError(
            "teacher has adapters (add_adapter, load_adapter): merge them into its weights before."
        )
    if getattr(teacher, "is_quantized", False):
        raise ValueError("teacher is quantised: load it without quantization_config.")
    devices = {parameter.device for parameter in teacher.parameters()}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in teacher.parameters())
    if sharded or len(devices) > 1 or torch.device("meta") in devices:
        raise ValueError(
            "teacher is sharded or spread over devices: load it whole, on one device (without "
            "device_map, FSDP or DeepSpeed)."
        )
    return teacher


def _search(
    sides: list[Side], calibration: Calibration, number: int, least: int
) -> list[list[int] | None]:
    """Return the layers to keep of each stack; the layers of the others all stay meanwhile."""
    last, tokens, batches = sides[-1], 0, []
    for batch in calibration:
        tokens += int(last.tokens(batch, last.runner.embed(batch)).sum())
        batches.append(batch)
        if tokens >= least:
            break
    return [
        least_missed(side, batches, number, () if side.stack.first_layer is None else (0,), last)
        for side in sides
    ]


def _empty_student(
    teacher: PreTrainedModel,
    family: Family,
    sizes: Sizes,
    layers: list[list[int]],
    dropout: float | None,
) -> PreTrainedModel:
    """Make a model of the student's size, with weights to be overwritten."""
    config = student_config(teacher.config, family, sizes, *layers)
    set_dropout(config, dropout)
    config.name_or_path = ""
    student: PreTrainedModel = empty_like(teacher, config)
    module: nn.Module = student
    module.to(teacher.device)
    if teacher.can_generate() and teacher.generation_config is not None:
        student.generation_config = type(teacher.generation_config).from_dict(
            teacher.generation_config.to_dict()
        )
    return student.eval()


def _fit(
    model: PreTrainedModel,
    student: PreTrainedModel,
    family: Family,
    layers: Mapping[Stack, list[int]],
    calibration: Calibration,
    tokens: int,
) -> int:
    """Fit a student; return the number of tokens that (the last stack of) it was fitted on."""
    wide, narrow = (
        [Side(one, stack, Sizes.of(one.config, family)) for stack in layers]
        for one in (model, student)
    )
    found = gather(wide, calibration, tokens)
    sizes, seen = narrow[0].sizes, min(statistics.tokens for statistics in found)
    inputs = max(sizes.hidden_size, sizes.intermediate_size, sizes.heads * sizes.head_size)
    needed = 2 * inputs
    if seen < needed:
        of = " of input or of target" if len(found) > 1 else ""
        raise TooFewTokensError(
            f"calibration_data has {seen} tokens{of} (of calibration_tokens={tokens}), "
            f"but a student with {inputs} units in a layer needs at least {needed}: pass more rows "
            "and raise calibration_tokens.",
            seen=seen,
            needed=needed,
        )
    basis = basis_of(wide, found, sizes.hidden_size)
    fit: StackFit | None = None
    with tempfile.TemporaryDirectory() as folder:
        for teacher, made, kept, statistics in zip(
            wide, narrow, layers.values(), found, strict=True
        ):
            fit = StackFit(teacher, made, kept, calibration, statistics, basis, folder, fit)
            fit.fit()
        assert fit is not None
        HeadFit(fit).fit()
    return seen
