"""Which alignment a task has."""

from __future__ import annotations

from hf_distill.alignment.base import Alignment
from hf_distill.alignment.characters import CharacterAlignment
from hf_distill.heads import (
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
)

ALIGNMENTS: dict[type[TaskHead], type[Alignment]] = {
    SequenceClassificationHead: Alignment,
    MultipleChoiceHead: Alignment,
    QuestionAnsweringHead: CharacterAlignment,
}


def find_alignment(head: TaskHead) -> Alignment | None:
    """Return the alignment of a task; ``None`` if its teacher must have the student's tokenizer."""
    found = ALIGNMENTS.get(type(head))
    return None if found is None else found(head)
