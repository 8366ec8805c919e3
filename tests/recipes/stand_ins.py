"""Tiny models of the architectures of the recipes, with tokenizers of the same kinds, and data.

Students are what the Hub has of them: encoders without a head for question answering.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tasks.question_answering import qa_tokenizers
from tasks.question_answering.squad_documents import german, v2
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
)

from hf_distill.recipes import Recipe


class StandIn(NamedTuple):
    """What stands in for the models of a recipe."""

    config: type[PretrainedConfig]
    student: Any
    teacher: Any
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    widths: tuple[int, int] = (16, 32)
    """Of student and teacher."""
    data: Callable[[], dict[str, Any]] = v2


def cased() -> PreTrainedTokenizerFast:
    return qa_tokenizers.bert(lowercase=False)


BERT = StandIn(BertConfig, BertForPreTraining, BertForQuestionAnswering, qa_tokenizers.bert)
STAND_INS = {
    "bert-medium-squad2": BERT,
    "roberta-base-squad2": StandIn(
        RobertaConfig, RobertaForMaskedLM, RobertaForQuestionAnswering, qa_tokenizers.roberta
    ),
    "xlm-roberta-base-squad2": StandIn(
        XLMRobertaConfig,
        XLMRobertaForMaskedLM,
        XLMRobertaForQuestionAnswering,
        qa_tokenizers.sentencepiece,
    ),
    "gelectra-base-germanquad": StandIn(
        ElectraConfig, ElectraForPreTraining, ElectraForQuestionAnswering, cased, data=german
    ),
    "tinybert-6l-squad2": BERT._replace(widths=(32, 32)),
    "tinybert-4l-squad2": BERT._replace(widths=(12, 32)),
}


def save_models(recipe: Recipe, folders: dict[str, Path]) -> None:
    """Save student and teacher with their tokenizers.

    Args:
        recipe: whose.
        folders: where to, for ``student`` and ``teacher``.
    """
    stand_in = STAND_INS[recipe.name]
    tokenizer = stand_in.tokenizer()
    for seed, (role, width) in enumerate(zip(("student", "teacher"), stand_in.widths, strict=True)):
        torch.manual_seed(seed)
        config = stand_in.config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=1 + seed,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=514,
            type_vocab_size=2 if "token_type_ids" in tokenizer.model_input_names else 1,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
        )
        model = (stand_in.student if role == "student" else stand_in.teacher)(config)
        model.save_pretrained(folders[role])
        tokenizer.save_pretrained(folders[role])


def write_data(recipe: Recipe, path: Path) -> Path:
    """A file in the layout of the recipe's data set."""
    path.write_text(json.dumps(STAND_INS[recipe.name].data()), encoding="utf-8")
    return path
