"""Pairs of tiny models, good and bad, and what a report says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import bert_config
from torch import nn
from transformers import BertForQuestionAnswering, BertForSequenceClassification

Pair = Callable[[Path], tuple[Any, Any, dict[str, Any]]]
"""Makes a teacher, a student and the options of `check_pair` in a folder."""

NAMES = ("no", "maybe", "yes")


def named(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def trained(model: nn.Module) -> nn.Module:
    """As if it were: no bias is zero any more."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def classifier(*names: str, cls: Any = BertForSequenceClassification, **options: Any) -> nn.Module:
    return trained(cls(bert_config(**named(*(names or NAMES)), **options)))


def question_answering(**options: Any) -> nn.Module:
    return trained(BertForQuestionAnswering(bert_config(**options)))


def saved(model: nn.Module, path: Path, *, words: Any = None) -> str:
    model.save_pretrained(path)
    if words is not None:
        words.save_pretrained(path)
    return str(path)


def status(report: Any) -> dict[str, str]:
    return {finding.about: finding.status for finding in report.findings}


def message(report: Any, about: str) -> str:
    return next(f.message for f in report.findings if f.about == about)


def always(label: int) -> nn.Module:
    """A teacher that gives one label, whatever the input."""
    model = classifier()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.eye(3)[label])
    return model


def labelled(labels: list[int]) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.full((len(labels), 6), 7), "labels": torch.tensor(labels)}]


def assert_says(text: str, expected: str) -> None:
    assert re.search(expected, text, re.DOTALL), text
