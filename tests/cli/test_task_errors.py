"""What cannot work is refused before anything is trained, with a message that says why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_runs import Result
from datasets import Dataset, DatasetDict
from task_runs import OPTIONS, labelled, save_model

from hf_distill.cli.loading import as_typed

CLASSES, TOKENS, MASKS = "text-classification", "token-classification", "fill-mask"
WRITING, SUMMARIES, TRANSLATIONS = "text-generation", "summarization", "translation"


class Bad(NamedTuple):
    name: str
    task: str
    file: str
    content: object
    fragments: tuple[str, ...]
    options: tuple[str, ...] = ()


def csv(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = csv("text,label", "a,pos", "b,neg")

BAD = [
    # files
    Bad("no file", CLASSES, "", None, ("--train_file", "no such file")),
    Bad("ending", CLASSES, "d.xlsx", "x", ("d.xlsx", ".csv", ".jsonl", "rename or convert")),
    Bad("pickle", CLASSES, "d.pkl", "x", ("d.pkl", "data files end in")),
    Bad("parquet.gz", CLASSES, "d.parquet.gz", "x", ("all but .parquet also with .gz",)),
    Bad("empty file", CLASSES, "d.csv", "", ("d.csv", "is empty")),
    Bad("no rows", CLASSES, "d.csv", "text,label\n", ("d.csv", "no rows")),
    Bad("ragged csv, longer", CLASSES, "d.csv", csv("text,label", "a,b", "c,d,e"),
        ("d.csv", "line 3", "2 cells of the first line but 3", "quotes")),
    Bad("ragged csv, shorter", CLASSES, "d.csv", csv("text,label", "a,b", "c"),
        ("line 3", "2 cells of the first line but 1", "empty")),
    Bad("ragged tsv", CLASSES, "d.tsv", csv("text\tlabel", "a\tb\tc"),
        ("line 2", "2 cells of the first line but 3", "a tab")),
    Bad("twice the same column", CLASSES, "d.csv", csv("text,text,label", "a,b,c"),
        ("two columns 'text'", "rename")),
    Bad("not UTF-8", CLASSES, "d.csv", b"text,label\n\xff\xfe,b\n", ("d.csv, line 2", "UTF-8")),
    Bad("broken JSON", CLASSES, "d.jsonl", '{"text": "a", "label": "b"}\n{"text": \n',
        ("d.jsonl", "cannot be read", "JSON")),
    Bad("not gzip", CLASSES, "d.csv.gz", "text,label\n", ("d.csv.gz", "gzip")),
    Bad("not Parquet", CLASSES, "d.parquet", "text", ("d.parquet", "cannot be read")),
    Bad("ragged conll", TOKENS, "d.conll", "a O\nb\n", ("line 2", "'b'", "has 1 columns")),
    Bad("one column conll", TOKENS, "d.conll", "a\nb\n", ("line 1", "a token and its tag")),
    Bad("folder without data", CLASSES, "d/", None, ("no data set", "save_to_disk")),
    Bad("folder with splits", CLASSES, "d/", {"dev": {"text": ["a"], "label": ["b"]}},
        ("split='train'", "dev")),
    Bad("tabs after all tags", TOKENS, "d.conll", "a\tO\t\nb\tB\t\n",
        ("the last of its 3 columns", "is empty in every line", "Remove the tabs")),
    # columns
    Bad("unknown text column", CLASSES, "d.csv", GOOD,
        ("--text_column 'body'", "no such column", "text, label"), ("--text_column", "body")),
    Bad("unknown label column", CLASSES, "d.csv", GOOD,
        ("--label_column 'y'", "no such column"), ("--label_column", "y")),
    Bad("unknown second column", CLASSES, "d.csv", GOOD,
        ("--text_pair_column 'other'", "no such column"), ("--text_pair_column", "other")),
    Bad("one column for two things", CLASSES, "d.csv", GOOD,
        ("--text_column 'label'", "something else already"), ("--text_column", "label")),
    Bad("a pair of the same text", CLASSES, "d.csv", GOOD,
        ("--text_pair_column 'text'", "something else already"), ("--text_pair_column", "text")),
    Bad("tags for words", TOKENS, "d.jsonl", jsonl({"tokens": ["a"], "tags": ["O"]}),
        ("--label_column 'tokens'", "something else already"), ("--label_column", "tokens")),
    Bad("the text for a target", SUMMARIES, "d.csv", csv("document,summary", "a,b"),
        ("--text_column 'summary'", "something else already"), ("--text_column", "summary")),
    Bad("no room for text", CLASSES, "d.csv", GOOD,
        ("--max_length 2 must be at least 3 (2 of them are special tokens)",),
        ("--max_length", "2")),
    Bad("no room for pairs", CLASSES, "d.csv", csv("text,other,label", "a,b,c", "d,e,f"),
        ("--max_length 4 must be at least 5 (3 ",),
        ("--max_length", "4", "--text_pair_column", "other")),
    Bad("no room for words", TOKENS, "d.jsonl", jsonl({"tokens": ["a"], "tags": ["O"]},
        {"tokens": ["a"], "tags": ["P"]}), ("--max_length 2 must be",), ("--max_length", "2")),
    Bad("no label column", CLASSES, "d.csv", csv("text,answer", "a,b"),
        ("a usual name for the label", "text, answer", "with --label_column")),
    Bad("no first line", CLASSES, "d.tsv", csv("hide new secretions from them\t0", "a\t1"),
        ("the first line with the names of the columns is missing",)),
    Bad("two label columns", CLASSES, "d.csv", csv("text,class,category", "a,b,c"),
        ("several columns", "class, category", "with --label_column")),
    Bad("two text columns", CLASSES, "d.csv", csv("body,title,label", "a,b,c"),
        ("a usual name for the text", "body, title", "text_column")),
    Bad("text is a number", CLASSES, "d.jsonl",
        jsonl({"text": 1, "label": "b"}, {"text": 2, "label": "c"}),
        ("'text' holds whole numbers", "text_column")),
    Bad("all texts are empty", CLASSES, "d.csv", csv("text,label", '" ",b', '"",c'),
        ("'text' are empty", "text_column")),
    Bad("no text in a row", CLASSES, "d.jsonl",
        jsonl({"text": "a", "label": "b"}, {"text": None, "label": "c"}),
        ("Row 1", "'text'", "remove the row")),
    # labels
    Bad("decimals for names", CLASSES, "d.jsonl",
        jsonl({"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}),
        ("single_label_classification", "numbers with decimals", "label_column"),
        ("--problem_type", "single_label_classification")),
    Bad("names for numbers", CLASSES, "d.csv", GOOD,
        ("regression", "a number", "holds text"), ("--problem_type", "regression")),
    Bad("one label for several", CLASSES, "d.csv", GOOD,
        ("multi_label", "a list of labels"), ("--problem_type", "multi_label_classification")),
    Bad("label in no row", CLASSES, "d.csv", csv("text,label", "a,pos", "b,pos"),
        ("--train_file: The label column has no labels to tell apart", "'pos'")),
    Bad("no label in a row", CLASSES, "d.jsonl",
        jsonl({"text": "a", "label": "b"}, {"text": "c", "label": None}),
        ("Row 1", "'label'", "label the row")),
    Bad("no number in a row", CLASSES, "d.csv", csv("text,label", "a,1.5", "b,"),
        ("Row 1 has nothing", "'label'")),
    Bad("labels apart by case", CLASSES, "d.csv", csv("text,label", "a,neg", "b,Neg", "c,pos"),
        ("'Neg'", "'neg'", "differ only in case")),
    Bad("blank labels", CLASSES, "d.csv", csv("text,label", "a,pos", "b,", "c,neg", "d, "),
        ("2 rows (1, 3) have nothing in the column 'label'",)),
    Bad("vectors or numbers", CLASSES, "d.jsonl",
        jsonl({"text": "a", "label": [0, 1]}, {"text": "b", "label": [1, 0]}), ("two ways",)),
    Bad("decimals for names or numbers", CLASSES, "d.csv", csv("text,label", "a,0.50", "b,1.25"),
        ("'0.50'", "problem_type")),
    Bad("a text among decimals", CLASSES, "d.csv", csv("text,label", "a,1.5", "b,2", "c,N/A"),
        ("Row 2 has 'N/A'", "2 of 3 rows", "problem_type regression")),
    Bad("a comma in a number to predict", CLASSES, "d.csv",
        csv("text,label", "a,1.5", 'b,"1,500.5"', "c,2.5"),
        ("Row 1 has '1,500.5'", "1500.5"), ("--problem_type", "regression")),
    Bad("no label in a column of another name", CLASSES, "d.csv",
        csv("text,sentiment", "a,pos", "b,"), ("nothing in the column 'sentiment'",)),
    Bad("no tag in a column of another name", TOKENS, "d.jsonl",
        jsonl({"tokens": ["a"], "ner_tags": [" "]}), ("nothing in the column 'ner_tags'",)),
    Bad("labels of tokens", TOKENS, "d.jsonl", jsonl({"tokens": ["a", "b"], "tags": [1, -100]}),
        ("Row 0 has the label -100", "whole words with a tag for each")),
    Bad("label -1", CLASSES, "d.csv", csv("text,label", "a,0", "b,-1"),
        ("Row 1", "label -1", "empty the cell")),
    Bad("each row its own label", CLASSES, "d.csv",
        csv("text,label", *(f"text {n},id{n}" for n in range(60))),
        ("another value in each of 60 rows", "label_column")),
    Bad("labels are objects", CLASSES, "d.jsonl", jsonl({"text": "a", "label": {"x": 1}}),
        ("label column holds", "label_column")),
    # words and tags
    Bad("unequal lengths", TOKENS, "d.jsonl",
        jsonl({"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}),
        ("Row 1", "2 words (tokens)", "1 tags (tags)")),
    Bad("a text for words", TOKENS, "d.jsonl", jsonl({"tokens": "a b", "tags": ["O", "O"]}),
        ("'tokens' holds text", "lists of words")),
    Bad("a text for tags", TOKENS, "d.jsonl", jsonl({"tokens": ["a"], "tags": "O"}),
        ("'tags' holds text", "lists of tags")),
    Bad("no words", TOKENS, "d.jsonl", jsonl({"tokens": ["a"][1:], "tags": ["O"][1:]},
        {"tokens": [""][1:], "tags": [""][1:]}), ("tokens",)),
    Bad("no tags", TOKENS, "d.jsonl", jsonl({"tokens": ["a"], "pos": ["N"]}),
        ("a usual name for the list of tags", "label_column")),
    # language models
    Bad("too short", MASKS, "d.txt", "\x01", ("too short", "add text")),
    Bad("blank text", WRITING, "d.txt", " \n\n", ("'text' are empty",)),
    Bad("too small a block", MASKS, "d.txt", "good morning", ("--block_size 3", "no room"),
        ("--block_size", "3")),
    Bad("too big a block", WRITING, "d.txt", "good morning", ("--block_size 65", "64 tokens"),
        ("--block_size", "65")),
    Bad("no masks", MASKS, "d.txt", "good morning", ("--mlm_probability 0",),
        ("--mlm_probability", "0")),
    # targets
    Bad("no target", SUMMARIES, "d.csv", csv("document,title", "a,b"),
        ("a usual name for the target", "document, title", "target_column")),
    Bad("unknown target", SUMMARIES, "d.csv", csv("document,title", "a,b"),
        ("--target_column 'short'", "no such column"), ("--target_column", "short")),
    Bad("empty target", SUMMARIES, "d.jsonl",
        jsonl({"document": "a", "summary": "b"}, {"document": "a", "summary": " "}),
        ("Row 1", "empty target", "'summary'")),
    Bad("target is missing", SUMMARIES, "d.jsonl",
        jsonl({"document": "a", "summary": "b"}, {"document": "a", "summary": None}),
        ("Row 1", "nothing", "'summary'")),
    Bad("no beam", SUMMARIES, "d.csv", csv("document,summary", "a,b"), ("--num_beams 0",),
        ("--num_beams", "0")),
    Bad("no room for a target", SUMMARIES, "d.csv", csv("document,summary", "a,b"),
        ("--max_target_length 0",), ("--max_target_length", "0")),
    Bad("a target beyond the decoder's positions", SUMMARIES, "d.csv",
        csv("document,summary", "a,b"), ("--max_target_length 300", "at most 64"),
        ("--max_target_length", "300")),
    Bad("unknown language", TRANSLATIONS, "d.jsonl", jsonl({"translation": {"de": "a", "xx": "b"}}),
        ("--source_lang 'en'", "de, xx")),
]  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    tasks = (CLASSES, TOKENS, MASKS, WRITING, SUMMARIES, TRANSLATIONS)
    return {task: save_model(folder / task, task) for task in tasks}


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / (name or "nowhere.csv")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        splits = {split: Dataset.from_dict(rows) for split, rows in content.items()}
        DatasetDict(splits).save_to_disk(path)
    elif name:
        path.mkdir()
    return path


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_data_fails_before_training(
    bad: Bad,
    models: dict[str, str],
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.Trainer.train", lambda *a, **k: pytest.fail("it trains"))
    path = write(tmp_path, bad.file, bad.content)
    result = program(
        "train", "--task", bad.task, "--student_model", models[bad.task], "--baseline",
        "--train_file", path, "--output_dir", tmp_path / "out", "--use_cpu",
        *OPTIONS.get(bad.task, []), *bad.options,
    )  # fmt: skip
    assert result.status == 2, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in bad.fragments:
        assert fragment in result.stderr


@pytest.mark.parametrize(
    ("content", "options", "model_labels", "fragments"),
    [
        (csv("text,label", "a,neg", "b,odd"), {}, ("pos", "neg"),
         ("Row 1", "'odd'", "none of the model's labels: pos, neg")),
        (csv("text,label", "a,0", "b,2"), {}, ("pos", "neg"), ("Row 1", "label 2", "pos, neg")),
        (csv("text,label", "a,0.5", "b,1.5"), {}, ("pos", "neg"), ("Row 0", "'0.5'", "none of")),
        (GOOD, {"problem_type": "regression"}, ("LABEL_0",), ("regression", "a number")),
        (GOOD, {}, ("LABEL_0", "LABEL_1"), ("Row 0", "'pos'", "LABEL_0, LABEL_1")),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_the_model(
    content: str,
    options: dict[str, str],
    model_labels: tuple[str, ...],
    fragments: tuple[str, ...],
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    model = save_model(tmp_path / "model", CLASSES, **labelled(*model_labels), **options)
    path = write(tmp_path, "d.csv", content)
    result = program("evaluate", "--task", CLASSES, "--model", model, "--file", path, "--use_cpu")
    assert result.status == 2
    for fragment in ("--file: ", *fragments):
        assert fragment in result.stderr


def test_rows_are_counted_in_the_whole_data(tmp_path: Path, program: Callable[..., Result]) -> None:
    model = save_model(tmp_path / "model", CLASSES, **labelled("pos", "neg"))
    lines = [f"text {n},{'odd' if n == 7 else 'pos'}" for n in range(14)]
    path = write(tmp_path, "d.csv", csv("text,label", *lines))
    options = ["--task", CLASSES, "--model", model, "--file", path, "--use_cpu"]
    result = program("evaluate", *options, "--max_eval_samples", "2")
    assert result.status == 2 and "Row 7" in result.stderr


def test_unknown_label_of_the_validation_data_fails_before_training(
    models: dict[str, str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    train = write(tmp_path, "train.csv", GOOD)
    dev = write(tmp_path, "dev.csv", csv("text,label", "a,pos", "b,odd"))
    result = program(
        "train", "--task", CLASSES, "--student_model", models[CLASSES], "--baseline",
        "--train_file", train, "--validation_file", dev, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.status == 2
    assert "--validation_file: Row 1" in result.stderr and "'odd'" in result.stderr


def test_model_without_a_mask_token(
    models: dict[str, str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    from task_runs import letters

    letters(end=False, pad=True).save_pretrained(models[MASKS] + "_letters")
    from task_runs import tiny_model

    tiny_model(MASKS).save_pretrained(models[MASKS] + "_letters")
    path = write(tmp_path, "d.txt", "good morning")
    result = program(
        "evaluate", "--task", MASKS, "--model", models[MASKS] + "_letters", "--file", path
    )
    assert result.status == 2 and "no mask token" in result.stderr


@pytest.mark.parametrize("task", [CLASSES, TOKENS])
def test_encoder_is_not_scored(
    task: str, models: dict[str, str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    path = write(tmp_path, "d.csv", GOOD)
    result = program("evaluate", "--task", task, "--model", models[MASKS], "--file", path)
    assert result.status == 2


def test_compressed_files_are_read(tmp_path: Path, program: Callable[..., Result]) -> None:
    model = save_model(tmp_path / "model", CLASSES, **labelled("pos", "neg"))
    contents = {
        "d.csv.gz": GOOD,
        "d.tsv.gz": GOOD.replace(",", "\t"),
        "d.jsonl.gz": jsonl({"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}),
    }
    for name, content in contents.items():
        path = write(tmp_path, name, gzip.compress(content.encode()))
        options = ["--task", CLASSES, "--model", model, "--file", path, "--use_cpu"]
        result = program("evaluate", *options)
        assert result.status == 0, result.stderr
        assert f"{name}, 2 examples" in result.stdout


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("name it with label_column.", "name it with --label_column."),
        ("layers='auto' needs calibration_data", "--layers 'auto' needs --calibration_file"),
        ("--label_column moods", "--label_column moods"),
        ("the file label_columns.csv", "the file label_columns.csv"),
        ("data/label_column/a.csv has two layers", "data/label_column/a.csv has two layers"),
        ("it has the columns 'label_column'", "it has the columns 'label_column'"),
    ],
)
def test_arguments_are_shown_as_options(message: str, shown: str) -> None:
    renamed = {"calibration_data": "calibration_file"}
    assert as_typed(message, ["label_column", "layers"], renamed) == shown
