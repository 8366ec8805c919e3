"""Task heads: a task's logits, the classes of a row and the rows that count.

A head knows one task and no trainer. It turns the outputs of a model into a tensor of logits
``(*rows, classes)``; each row is one distribution that the student learns from the teacher.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto

from hf_distill.heads.base import Batch, LabelledHead, TaskHead
from hf_distill.heads.classification import (
    AudioClassificationHead,
    ImageClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from hf_distill.heads.language_modeling import (
    CausalLMHead,
    LanguageModelingHead,
    MaskedLMHead,
    Seq2SeqLMHead,
)

__all__ = [
    "AudioClassificationHead",
    "Batch",
    "CausalLMHead",
    "ImageClassificationHead",
    "LabelledHead",
    "LanguageModelingHead",
    "MaskedLMHead",
    "MultipleChoiceHead",
    "QuestionAnsweringHead",
    "Seq2SeqLMHead",
    "SequenceClassificationHead",
    "TaskHead",
    "TokenClassificationHead",
    "find_head",
    "head_of_class",
    "head_of_task",
    "unwrap_peft",
    "unwrapped",
]

_HEADS: dict[str, type[TaskHead]] = {
    "QUESTION_ANSWERING": QuestionAnsweringHead,
    "TOKEN_CLASSIFICATION": TokenClassificationHead,
    "MULTIPLE_CHOICE": MultipleChoiceHead,
    "IMAGE_CLASSIFICATION": ImageClassificationHead,
    # Before the texts: many of these classes are called …ForSequenceClassification.
    "AUDIO_CLASSIFICATION": AudioClassificationHead,
    "SEQUENCE_CLASSIFICATION": SequenceClassificationHead,
    "MASKED_LM": MaskedLMHead,
    "CAUSAL_LM": CausalLMHead,
}
"""By the key of transformers' table of such classes."""

_SEQ2SEQ = {
    "SPEECH_SEQ_2_SEQ": "AutoModelForSpeechSeq2Seq",
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
}

_TASKS: dict[str, type[TaskHead]] = {
    **{head.task: head for head in _HEADS.values()},
    "summarization": Seq2SeqLMHead,
    "translation": Seq2SeqLMHead,
}

# Their logits are not those of the next token.
_NOT_SHIFTED = ("XLNetLMHeadModel", "ProphetNetForCausalLM", "XLMProphetNetForCausalLM")


def find_head(model: nn.Module) -> TaskHead | None:
    """Return the head of a model, by its class; ``None`` if its task has none here.

    Models of libraries other than transformers are known by their class name's ending
    (``…ForQuestionAnswering``, ``…ForSequenceClassification``, …).
    """
    model = unwrap_peft(model)
    return head_of_class(type(model).__name__, getattr(model, "config", None))


def head_of_class(name: str, config: Any) -> TaskHead | None:
    """Return the head of models of the class ``name``; ``None`` if their task has none here.

    Args:
        name: as in ``config.architectures``.
        config: the model's configuration.
    """
    if name in _NOT_SHIFTED:
        return None
    # First, and by what the model is: BartForConditionalGeneration is also among the masked LMs.
    if getattr(config, "is_encoder_decoder", False):
        for key, auto_model in _SEQ2SEQ.items():
            if name in _class_names(key):
                return Seq2SeqLMHead(config, auto_model)
    for key, head in _HEADS.items():
        if name in _class_names(key):
            return head(config)
    for head in _HEADS.values():
        if name.endswith(head.auto_model.removeprefix("AutoModel")):
            return head(config)
    return CausalLMHead(config) if name.endswith("LMHeadModel") else None


def head_of_task(task: str, config: Any) -> TaskHead:
    """Return the head for a task.

    Args:
        task: as the Hub calls it.
        config: the configuration of the student.

    Raises:
        ValueError: there is no such task; lists those that exist.
    """
    if task not in _TASKS:
        raise ValueError(f"There is no task {task!r}; the tasks are: {', '.join(_TASKS)}.")
    return _TASKS[task](config)


def unwrap_peft(model: nn.Module) -> nn.Module:
    """Return the transformers model under PEFT adapters; the model itself without any."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, which name no input in their forward, and adapters.

    Such wrappers (``torch.compile``, ``nn.DataParallel`` and the like, custom modules with a
    ``forward(**kwargs)``) hold one module.
    """
    while True:
        model = unwrap_peft(model)
        children = list(model.children())
        if len(children) != 1:  # most models: asked first, as a signature takes longer
            return model
        parameters = inspect.signature(model.forward).parameters.values()
        if any(p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
            return model
        model = children[0]


def _class_names(key: str) -> set[str]:
    """Return the classes in one of transformers' tables; some of its entries are several."""
    table = getattr(modeling_auto, f"MODEL_FOR_{key}_MAPPING_NAMES")
    names: set[str] = set()
    for entry in table.values():
        names.update([entry] if isinstance(entry, str) else entry)
    return names
