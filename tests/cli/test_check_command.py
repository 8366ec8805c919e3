"""`hf-distill check`: what it says of a pair, and its exit status."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, bert_config, tokenizer
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_distill.cli.main import main

NAMES = ("no", "yes")


def teacher(path: Path, *, words: Any = None, finds: str | None = None) -> str:
    """A classifier; with ``finds`` one that says yes to texts that begin with that word."""
    torch.manual_seed(0)
    config = bert_config(
        id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.bias.add_(0.1)
        if finds is not None:
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.eye(2)[NAMES.index(finds)])
    model.save_pretrained(path)
    (words or tokenizer()).save_pretrained(path)
    return str(path)


def student(path: Path) -> str:
    BertModel(bert_config(layers=1)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def table(path: Path, yes: int, no: int) -> str:
    rows = [f"a b c {i},{'yes' if i < yes else 'no'}" for i in range(yes + no)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return str(path)


def findings(printed: str) -> dict[str, tuple[str, str]]:
    return {f["about"]: (f["status"], f["message"]) for f in json.loads(printed)["findings"]}


def test_a_good_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["check", teacher(tmp_path / "t"), student(tmp_path / "s"), "--json"])
    printed = capsys.readouterr().out
    assert status == 0
    assert json.loads(printed)["ok"] is True
    assert json.loads(printed)["task"] == "text-classification"
    assert {one for one, _ in findings(printed).values()} == {"ok"}


def test_another_tasks_head_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a training. Both heads have a layer called `classifier`, of 2 and of 5 labels."""
    tagger = tmp_path / "tagger"
    BertForTokenClassification(bert_config(layers=1, num_labels=5)).save_pretrained(tagger)
    tokenizer().save_pretrained(tagger)
    assert main(["check", teacher(tmp_path / "t"), str(tagger), "--json"]) == 0
    found = findings(capsys.readouterr().out)
    assert found["labels"][0] == "ok" and {status for status, _ in found.values()} == {"ok"}


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_new_head_solves_the_teachers_problem(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a training, where the teacher decides."""
    big, encoder = tmp_path / "t", tmp_path / "encoder"
    config = bert_config(num_labels=1 if kind == "regression" else 4, problem_type=kind)
    model = BertForSequenceClassification(config)
    model.classifier.bias.data += 1
    model.save_pretrained(big)
    BertModel(bert_config(layers=1)).save_pretrained(encoder)
    for folder in (big, encoder):
        tokenizer().save_pretrained(folder)
    assert main(["check", str(big), str(encoder), "--json"]) == 0
    found = findings(capsys.readouterr().out)
    assert all(status != "error" for status, _ in found.values()), found


@pytest.mark.parametrize("has_data", [False, True])
def test_a_student_that_takes_fewer_tokens_than_the_task_gives(
    has_data: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a training refuses it: 384 tokens by default, or as many as are wanted."""
    model = BertForQuestionAnswering(bert_config(max_position_embeddings=512))
    model.qa_outputs.bias.data += 1
    model.save_pretrained(tmp_path / "t")
    tokenizer().save_pretrained(tmp_path / "t")
    squad = [
        {"question": "a?", "context": "a b c", "answers": {"text": ["b"], "answer_start": [2]}}
    ]
    rows = tmp_path / "dev.jsonl"
    rows.write_text("".join(json.dumps({"id": "1", **row}) + "\n" for row in squad))
    pair = [str(tmp_path / "t"), student(tmp_path / "s"), "--json"]
    pair += ["--file", str(rows)] * has_data
    with pytest.raises(SystemExit) as ended:
        main(["check", *pair])
    assert ended.value.code == 1
    status, message = findings(capsys.readouterr().out)["student's length"]
    assert status == "error"
    assert message.startswith("--max_length 384 is more than the 64 tokens")
    short = ["--max_length", "32", "--doc_stride", "8"]
    with suppress(SystemExit):  # the teacher is worse than none
        main(["check", *pair, *short])
    assert "student's length" not in findings(capsys.readouterr().out)


def test_a_teacher_is_tried_on_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [student(tmp_path / "s"), "--json", "--file"]
    good = main(
        ["check", teacher(tmp_path / "y", finds="yes"), *options, table(tmp_path / "a.csv", 90, 10)]
    )
    assert good == 0
    assert findings(capsys.readouterr().out)["quality"] == (
        "warning",
        "On the evaluation data, of 100 labels the teacher gets 90.0% right, and the most frequent "
        "label alone would get 90.0%. A teacher that is no better than that has little to teach; "
        "check that it is fine-tuned for this task and data.",
    )
    with pytest.raises(SystemExit) as bad:
        main(["check", teacher(tmp_path / "n", finds="no"), *options, str(tmp_path / "a.csv")])
    assert bad.value.code == 1
    status, message = findings(capsys.readouterr().out)["quality"]
    assert status == "error"
    assert "gets 10.0% right" in message


def test_a_refused_pair_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {f"{s}_{n}": 2 for s in ("encoder", "decoder") for n in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=VOCABULARY, d_model=16, **sides, pad_token_id=0)
    for name, words in (("t", ("another", "vocabulary")), ("s", ())):
        BartForConditionalGeneration(config).save_pretrained(tmp_path / name)
        tokenizer(words).save_pretrained(tmp_path / name)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "t"), str(tmp_path / "s"), "--task", "summarization"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "error" in printed and "have different tokenizers: 97 and 97 tokens" in printed
    assert "The pair is refused." in printed
    assert f"hf-distill create-student {tmp_path / 't'} --num_hidden_layers 1" in printed


def test_a_teacher_with_another_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is tried on texts that it reads by itself."""
    other = tokenizer(("another", "vocabulary"))
    pair = [teacher(tmp_path / "t", finds="yes", words=other), student(tmp_path / "s")]
    main(["check", *pair, "--file", table(tmp_path / "dev.csv", 30, 10), "--json"])
    found = findings(capsys.readouterr().out)
    assert found["tokenizer"] == ("ok", "Different tokenizers: each reads its own encoding.")
    assert "gets 75.0% right" in found["quality"][1]


SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.mark.skipif(not SHARED.exists(), reason="the real teacher is in ../shared")
def test_students_of_the_teachers_family_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(SHARED / "models/minilm-l6-squad")
    small = student(tmp_path / "s")
    AutoTokenizer.from_pretrained(source).save_pretrained(small)  # too large for this student
    with pytest.raises(SystemExit):
        main(["check", source, small])
    assert "distilbert/distilbert-base-uncased (6 layers of 768" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: TEACHER, STUDENT"),
        (["t", "s", "--task", "juggling"], "invalid choice: 'juggling'"),
        (
            ["t", "s", "--task", "fill-mask", "--file", "a", "--dataset_name", "b"],
            "either --file or --dataset_name, not both",
        ),
        (["/nowhere/t", "s"], "TEACHER /nowhere/t: there is no such folder"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["check", *options])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
