"""Choose the alignment of a task."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hf_distill.alignment.base import Alignment
from hf_distill.alignment.characters import CharacterAlignment
from hf_distill.alignment.language_models import ChunkAlignment, PieceAlignment
from hf_distill.alignment.words import WordAlignment
from hf_distill.heads import (
    CausalLMHead,
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)

ALIGNMENTS: dict[type[TaskHead], type[Alignment]] = {
    SequenceClassificationHead: Alignment,
    MultipleChoiceHead: Alignment,
    QuestionAnsweringHead: CharacterAlignment,
    CausalLMHead: ChunkAlignment,
    TokenClassificationHead: WordAlignment,
}


def find_alignment(
    head: TaskHead, tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> Alignment | None:
    """Return the alignment of a task; ``None`` if its teacher must have the student's tokenizer.

    Args:
        head: the student's.
        tokenizer: the student's.
        teacher_tokenizer: the teacher's, which is another one.

    Raises:
        ValueError: too few entries of the vocabularies are the same, of masked language models.
    """
    if isinstance(head, MaskedLMHead):
        return PieceAlignment(head, tokenizer, teacher_tokenizer)
    found = ALIGNMENTS.get(type(head))
    return None if found is None else found(head)
