"""Files of others, damaged at random: each is read, or refused with a message.

Never with a traceback, never without end. With ``HF_DISTILL_FUZZ=2000`` in the environment as many
new ones of each kind are tried.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from task_runs import PAIRS, SENTENCES, TEXTS
from transformers import BertConfig

from hf_distill.augmentation.raw_rows import RawRows
from hf_distill.augmentation.squad import _read as read_document
from hf_distill.augmentation.word_vectors import open_word_vectors
from hf_distill.checkpoints.record import RECORD_FILE, read_record
from hf_distill.cli.config_files import load_yaml
from hf_distill.cli.main import USER_ERROR, _explained
from hf_distill.cli.teacher_column import read_column
from hf_distill.files import read_json
from hf_distill.hub.facts import read_facts
from hf_distill.hub.front_matter import read_card, split_card
from hf_distill.layers.samples import RecordedLayers, RecordedSample, _serialize, read_sample
from hf_distill.shrinking.plan import Plan
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.tables import load_table
from hf_distill.teachers.caching.logged_texts import read_log_probs

SECONDS = 20
TRIES = int(os.environ.get("HF_DISTILL_FUZZ", "0"))

NASTY = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\x1f\x8b", b"PK\x03\x04", b"\\ud800",
    b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 40, b"null", b"true", b"[", b"]", b"{", b"}",
    b'"', b"'", b"\\", b",", b":", b"\t", b"\r", b"\n", b"\n\n", b"[" * 3000, b'{"a":' * 3000,
    b"&a *a", b"? ", b"- ", b"!!python/object:os.system", b"\xe2\x80\xa8", b"0x10", b" ",
)  # fmt: skip
VALUES = (
    None, True, -1, 0, 10**30, 1e308, float("nan"), float("-inf"), "", "x", "\ud800", " ", [], {},
    [[]], [None], {"": None}, [1, "1"], "9" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file: a sound one, and how it is read."""

    name: str
    content: bytes
    read: Callable[[Path], object]


def squad(version: str) -> bytes:
    questions: list[Any] = [
        {"id": "1", "question": "who?", "answers": [{"text": "ann", "answer_start": 0}]},
        {"id": "2", "question": "what?", "answers": [{"text": "it", "answer_start": 10}]},
    ]
    if version == "v2.0":
        questions[1] |= {"is_impossible": True, "answers": []}
    paragraph = {"context": "ann wrote it.", "qas": questions}
    return json.dumps({"version": version, "data": [{"title": "t", "paragraphs": [paragraph]}]}
                      ).encode()  # fmt: skip


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vectors.txt", content)
    return file.getvalue()


def data_of(task: str) -> Callable[[Path], object]:
    """Read data as a training does, and make its labels."""
    made = create_task(task, TaskArguments())
    return lambda path: len(made.load_data(str(path), labelled=True))


def raw_rows(path: Path) -> object:
    """Read a file as augmentation does, which copies what it does not change."""
    table = load_table(path)
    return RawRows(path, table, ["text", "tokens"]).table()


def column_of(task: str) -> Callable[[Path], object]:
    """Read data with a column of predictions."""
    made = create_task(task, TaskArguments())
    config = BertConfig(id2label={0: "x", 1: "y"}, label2id={"x": 0, "y": 1})

    def read(path: Path) -> object:
        table = made.load_data(str(path), labelled=True, teacher_column="p")
        return read_column(made, table, "p", "probabilities", config)

    return read


def sample() -> bytes:
    """A recorded sentence, as a training writes it."""
    states, maps = {1: torch.ones(3, 4)}, {1: torch.ones(2, 3, 3)}
    layers = RecordedLayers(hidden_states=states, attention=maps)
    return _serialize(RecordedSample(1, [], torch.tensor([1, 2, 3]), layers, layers))


TABLE = [{"text": text, "label": label} for text, label in TEXTS]
TAGGED = [{"tokens": words, "tags": tags} for words, tags in SENTENCES]
WRITTEN = [{"text": one, "target": other} for one, other in PAIRS]
CONLL = "".join("".join(f"{w}\t{t}\n" for w, t in zip(*s, strict=True)) + "\n" for s in SENTENCES)
VECTORS = b"".join(b"%s 0.1 -0.2 3e-1\n" % word for word in (b"the", b"a", b"cat", b"dog"))
LOGGED = [
    {"prompt_token_ids": [1, 2, 3], "prompt_logprobs": [None, {"2": {"logprob": -1.5}, "4": -2},
                                                        {"3": -0.1}]},
    {"choices": [{"prompt_token_ids": [1, 2], "prompt_logprobs": [None, {"2": -1.0}]}]},
    {"input_ids": [1, 2], "target_token_ids": [[], [2]], "target_logprobs": [[], [-1.0]]},
]  # fmt: skip
COLUMN = [
    {"text": "a b", "label": "x", "p": {"x": 0.9, "y": 0.1}},
    {"text": "c", "label": "y", "p": {"labels": ["y", "x"], "scores": [0.6, 0.4]}},
    {"text": "d", "label": "y", "p": [{"label": "y", "score": 1.0}]},
]
COLUMN_CSV = (
    b'text,label,p\na b,x,"{""x"": 0.9, ""y"": 0.1}"\nc,y,"[{""label"": ""y"", ""score"": 1}]"\n'
)
WORD_COLUMN = [
    {"tokens": ["a", "b"], "tags": ["x", "y"], "p": [{"x": 0.9, "y": 0.1}, {"x": 1, "y": 0}]}
]
CARD = b"---\nlicense: mit\ntags:\n- a\nmodel-index:\n- name: x\n---\n\n# A model\n"
RECORD = {"format": 1, "settings": {"a": 1}, "files": {"model.safetensors": 12}}
SHAPE = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
PLAN = {
    "task": "fill-mask", "teacher": SHAPE, "shape": SHAPE, "speedup": 2.0,
    "decisions": {"bf16": {"name": "bf16", "value": True, "reason": "r"}},
    "table": [{"shape": SHAPE, "milliseconds": 1.0, "teacher_milliseconds": 2.0, "parameters": 3}],
    "seconds": {"created": 1.0},
}  # fmt: skip
CSV = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TEXTS)

KINDS = (
    *(Kind(f"{v}.json", squad(v), data_of("question-answering")) for v in ("v1.1", "v2.0")),
    Kind("squad.json.gz", gzip.compress(squad("v1.1"), mtime=0), data_of("question-answering")),
    Kind("document.json", squad("v2.0"), read_document),
    Kind("texts.csv", CSV.encode(), data_of("text-classification")),
    Kind("texts.tsv", CSV.replace(",", "\t").encode(), data_of("text-classification")),
    Kind("texts.json", json.dumps(TABLE).encode(), data_of("text-classification")),
    Kind("texts.jsonl", lines(TABLE), data_of("text-classification")),
    Kind("texts.parquet", parquet(TABLE), data_of("text-classification")),
    Kind("texts.txt", "".join(f"{text}\n" for text, _ in TEXTS).encode(), data_of("fill-mask")),
    Kind("words.conll", CONLL.encode(), data_of("token-classification")),
    Kind("words.jsonl", lines(TAGGED), data_of("token-classification")),
    Kind("words.parquet", parquet(TAGGED), data_of("token-classification")),
    Kind("pairs.jsonl", lines(WRITTEN), data_of("summarization")),
    *(
        Kind(f"rows.{ending}", content, raw_rows)
        for ending, content in (
            ("csv", CSV.encode()), ("jsonl", lines(TABLE)), ("json", json.dumps(TABLE).encode()),
            ("conll", CONLL.encode()), ("txt", b"a b\nc d\n"),
        )
    ),
    Kind("vectors.txt", VECTORS, open_word_vectors),
    Kind("vectors.vec", b"4 3\n" + VECTORS, open_word_vectors),
    Kind("vectors.txt.gz", gzip.compress(VECTORS, mtime=0), open_word_vectors),
    Kind("vectors.zip", zipped(VECTORS), open_word_vectors),
    Kind("logged.jsonl", lines(LOGGED), lambda path: read_log_probs(path, 10)),
    Kind("logged.parquet", parquet(LOGGED[2:]), lambda path: read_log_probs(path, 10)),
    Kind(
        "options.yaml", b"seed: 3\nlist: [1, 2.5, on]\nspace: {a: &x [1], b: *x}\n",
        lambda path: load_yaml(path.read_text(errors="replace")),
    ),
    Kind("distillation.json", b'{"format": 1, "a": [1]}', lambda path: read_facts(path.parent)),
    *(
        Kind(f"column.{ending}", content, column_of("text-classification"))
        for ending, content in (("csv", COLUMN_CSV), ("jsonl", lines(COLUMN)))
    ),
    Kind("words-column.jsonl", lines(WORD_COLUMN), column_of("token-classification")),
    Kind("README.md", CARD, lambda path: split_card(read_card(path, path.name))),
    Kind("step-00000001.safetensors", sample(), read_sample),
    Kind(RECORD_FILE, json.dumps(RECORD).encode(), lambda path: read_record(path.parent)),
    Kind("plan.json", json.dumps(PLAN).encode(), lambda path: Plan.from_json(read_json(path, "x"))),
)  # fmt: skip


class HangError(BaseException):
    """Not an ``Exception``: nothing may catch it."""


@contextmanager
def in_time() -> Iterator[None]:
    def late(*args: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_read_or_refused(kind: Kind, content: bytes, folder: Path) -> None:
    path = folder / kind.name
    path.write_bytes(content)
    for index in folder.glob(".*"):
        index.unlink()
    try:
        with in_time():
            kind.read(path)
    except Exception as error:
        status, message = _explained(error)
        if status != USER_ERROR:
            raise
        assert len(message) < 5000


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Cut, repeat, overwrite, or put in what readers stumble over."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        end = min(len(content), place + draw(st.integers(0, 12)))
        way = draw(st.sampled_from(("nasty", "nasty", "cut", "repeat", "end", "bytes")))
        if way == "nasty":
            content = content[:place] + draw(st.sampled_from(NASTY)) + content[end:]
        elif way == "cut":
            content = content[:place] + content[end:]
        elif way == "repeat":
            content = content[:end] + content[place:end] * draw(st.integers(1, 4)) + content[end:]
        elif way == "end":
            content = content[:place]
        else:
            content = content[:place] + draw(st.binary(max_size=6)) + content[end:]
    return content


@st.composite
def of_other_types(draw: Any, content: Any) -> Any:
    """Replace a value somewhere, or drop it."""
    if isinstance(content, dict | list) and content and draw(st.integers(0, 4)):
        content = content.copy()
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = draw(st.sampled_from(list(keys)))
        if draw(st.integers(0, 6)) == 0:
            del content[key]
        else:
            content[key] = draw(of_other_types(content[key]))
        return content
    return draw(st.sampled_from(VALUES))


def tries(number: int) -> Any:
    return settings(
        max_examples=TRIES or number,
        derandomize=not TRIES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def by_name(kind: Kind) -> str:
    return kind.name


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_a_sound_file_is_read(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    path.write_bytes(kind.content)
    kind.read(path)


@pytest.mark.parametrize("kind", KINDS, ids=by_name)
def test_damaged_bytes(kind: Kind, tmp_path: Path) -> None:
    @tries(60)
    @given(damaged(kind.content))
    def run(content: bytes) -> None:
        assert_read_or_refused(kind, content, tmp_path)

    run()


TREES = [kind for kind in KINDS if kind.name.endswith((".json", ".jsonl"))]


@pytest.mark.parametrize("kind", TREES, ids=by_name)
def test_values_of_other_types(kind: Kind, tmp_path: Path) -> None:
    is_lines = kind.name.endswith(".jsonl")
    text = kind.content.decode()
    tree = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)

    @tries(60)
    @given(of_other_types(tree))
    def run(content: Any) -> None:
        made = lines(content) if is_lines and isinstance(content, list) else json.dumps(content)
        assert_read_or_refused(kind, made if isinstance(made, bytes) else made.encode(), tmp_path)

    run()
