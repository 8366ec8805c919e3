"""Runs what the documentation shows."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import DatasetDict
from language_models import language_model
from language_models import tokenizer as causal_tokenizer
from tiny import bert_config, model_for, tokenizer
from transformers import BertForTokenClassification

from hf_distill.tasks.question_answering import load_question_answering_dataset

ROOT = Path(__file__).resolve().parents[2]
HUB_MODELS = (("deepset/bert-base-uncased-squad2", 1), ("google/bert_uncased_L-4_H-512_A-8", 0))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    """The Python snippets of a page, except those marked as needing an extra package."""
    text = re.sub(r"<!-- needs \w+ -->\n```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def prepare_what_the_pages_name(directory: Path) -> None:
    """Models and data under the names that the pages use; a folder goes before a Hub id."""
    for name, seed in (("teacher", 1), ("student", 0), *HUB_MODELS):
        model_for("question-answering", seed=seed).save_pretrained(directory / name)
        tokenizer().save_pretrained(directory / name)
    BertForTokenClassification(bert_config()).save_pretrained(directory / "small" / "student")
    tokenizer().save_pretrained(directory / "small" / "student")
    language_model().save_pretrained(directory / "language-model")
    causal_tokenizer().save_pretrained(directory / "language-model")
    question = {
        "id": "1",
        "question": "who?",
        "answers": [{"text": "ann", "answer_start": 0}],
    }
    paragraph = {"context": "ann wrote it.", "qas": [question]}
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    (directory / "train.json").write_text(json.dumps(data))
    questions = load_question_answering_dataset(directory / "train.json")
    DatasetDict({"train": questions}).save_to_disk(directory / "rajpurkar" / "squad_v2")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippets_run(page: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    prepare_what_the_pages_name(tmp_path)
    namespace: dict[str, Any] = {}
    for block in python_blocks(page):
        exec(compile(block, page.name, "exec"), namespace)


def test_there_are_snippets_to_run() -> None:
    assert sum(len(python_blocks(page)) for page in PAGES) >= 9


def test_what_is_trained_is_loaded_in_float32() -> None:
    """Since transformers 5, `from_pretrained` keeps the 16 bits of a checkpoint."""
    shown = [(page.name, block) for page in PAGES for block in python_blocks(page)]
    shown += [(path.name, path.read_text()) for path in sorted((ROOT / "examples").glob("*.py"))]
    calls = [
        (name, ast.unparse(node))
        for name, text in shown
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and re.match(r"AutoModel\w+\.from_pretrained\(", ast.unparse(node))
    ]
    assert len(calls) >= 10
    assert [one for one in calls if "dtype='float32'" not in one[1]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
