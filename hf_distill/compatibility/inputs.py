"""Which entries of a batch do models take, and can they take those of the first batch?"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from hf_distill.compatibility.models import longest_input
from hf_distill.compatibility.precision import weight_dtype
from hf_distill.compatibility.tokenizers import vocabulary_size
from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.heads import TaskHead, unwrapped
from hf_distill.heads.base import MAIN_INPUTS

logger = logging.getLogger(__name__)

# How rows are packed (`DataCollatorWithFlattening`), which models take through `**kwargs`.
PACKED_ROWS = {
    "cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q", "position_ids", "seq_idx",
}  # fmt: skip


class TakesInputs(Protocol):
    """A model and the entries of a batch that it reads."""

    model: nn.Module
    input_names: frozenset[str]


def input_names(model: nn.Module) -> frozenset[str]:
    """Return the arguments of a teacher's forward, without labels: it computes no loss."""
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    names = {
        p.name
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and "label" not in p.name
        and p.name not in ("start_positions", "end_positions")
    }
    takes_more = any(p.kind == p.VAR_KEYWORD for p in parameters)
    return frozenset(names | PACKED_ROWS if takes_more else names)


def inputs_for(
    model: nn.Module,
    names: frozenset[str],
    head: TaskHead,
    batch: Mapping[str, Any],
    vocabulary: VocabularyMap | None = None,
) -> dict[str, Any]:
    """Return the part of a batch that a teacher takes, and what its task adds.

    Images, sounds and other floating-point inputs are cast to the teacher's number format, and ids
    of a trimmed vocabulary become the teacher's.
    """
    if vocabulary is not None:
        head, batch = vocabulary.inputs_for_teacher(head, batch)
    inputs = {name: value for name, value in batch.items() if name in names}
    dtype = weight_dtype(model)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(dtype)
    if "use_cache" in names:
        inputs.setdefault("use_cache", False)  # nothing is generated, and it fills the memory
    return inputs | head.target_inputs(batch, unwrapped(model))


def check_inputs(
    teachers: Sequence[TakesInputs],
    student: nn.Module,
    head: TaskHead,
    batch: Mapping[str, Any],
    read: Mapping[str, Any] | None = None,
) -> None:
    """Check that teachers and student can take the first batch.

    Args:
        teachers: one, or several that are averaged.
        student: the student.
        head: the task.
        batch: the student's.
        read: the teacher's, if it reads another encoding.

    Raises:
        ValueError: the teacher's input is missing, an id is outside of a vocabulary, token types
            are missing, or the inputs are longer than a model has positions for.
    """
    taken = [n for n in MAIN_INPUTS if any(n in teacher.input_names for teacher in teachers)]
    read = batch if read is None else read
    if taken and not any(read.get(name) is not None for name in taken):
        raise ValueError(
            f"The batches have no input of the teacher ({', '.join(taken)}), only: "
            f"{', '.join(read)}. Name the column and the argument of the student's forward as the "
            "teacher has it."
        )
    pairs = [("teacher", one.model, read.get("input_ids")) for one in teachers]
    for who, model, ids in (*pairs, ("student", student, batch.get("input_ids"))):
        if ids is None:
            continue
        vocabulary, largest = vocabulary_size(model), int(ids.max())
        if vocabulary is not None and largest >= vocabulary:
            remedy = (
                "it was trained with another tokenizer. Choose a teacher and a student that share "
                "one"
            )
            if who == "student":
                remedy = (
                    "the tokenizer that the data was prepared with has more tokens. Prepare it "
                    "with the one that the student was trained with"
                )
            raise ValueError(
                f"The first batch has the input id {largest}, but the {who}'s vocabulary has only "
                f"{vocabulary} entries: {remedy}, or resize the embeddings "
                f"({who}.resize_token_embeddings)."
            )
        longest = longest_input(model)
        if longest is not None and ids.shape[-1] > longest:
            raise ValueError(
                f"The first batch has rows of {ids.shape[-1]} tokens, but the {who} has positions "
                f"for {longest} only; truncate the data to that (tokenizer(…, truncation=True, "
                f"max_length={longest}))."
            )
    if (
        head.needs_token_types
        and "token_type_ids" not in read
        and any(_reads_token_types(one) for one in teachers)
    ):
        raise ValueError(
            "The teacher was trained with token_type_ids, which tell question from context, and "
            "the batches have none, so its predictions would be poor. Prepare the data with the "
            "teacher's tokenizer and a data collator that keeps token_type_ids; a student that "
            "does not take them is not given them."
        )
    if type(student).__name__ == "PeftModelForQuestionAnswering" and "token_type_ids" in batch:
        logger.warning(
            "PEFT's model for task_type='QUESTION_ANS' drops token_type_ids, so the student cannot "
            "tell question from context. Leave task_type out of the adapter's configuration and "
            "name the head in modules_to_save (['qa_outputs'])."
        )


def _reads_token_types(teacher: TakesInputs) -> bool:
    config = getattr(unwrapped(teacher.model), "config", None)
    kinds = getattr(config, "type_vocab_size", None) or 0
    return "token_type_ids" in teacher.input_names and kinds > 1
