from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from cli_runs import Files, Result
from datasets import Dataset
from tiny import bert_config, tokenizer
from transformers import BertForMaskedLM

from hf_distill.augmentation import SquadAugmentationOptions
from hf_distill.cli.augment import build_parser
from hf_distill.tasks.tables import load_table

NAMES = ("paris", "rome", "river", "france", "italy", "england", "seine", "tiber", "town", "city")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "augment_squad.py"


@pytest.fixture(scope="session")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("masked_lm")
    BertForMaskedLM(bert_config()).save_pretrained(folder)
    tokenizer(NAMES).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def augment(
    masked_lm: str, program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setattr("hf_distill.augmentation.word_vectors.PACKAGE", "no_such_package")

    def call(*argv: object) -> Result:
        return program("augment", "--model", masked_lm, "--device", "cpu", *argv)

    return call


def test_squad(files: Files, augment: Callable[..., Result], tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.json"
    result = augment(
        "--squad_path", files.train, "--output_path", target, "--multiplication_factor", 3,
        "--replace_probability", 0.9,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    content = json.loads(target.read_text())
    found = content["data"][0]["paragraphs"]
    original = json.loads(Path(files.train).read_text())["data"][0]["paragraphs"]
    assert [
        one for one in found if not one["qas"][0]["id"].endswith(("-aug1", "-aug2"))
    ] == original
    assert f"{2 * len(found)} questions in {target}" in result.stdout
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]


def test_the_example_writes_the_same(
    files: Files,
    augment: Callable[..., Result],
    masked_lm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--squad_path", files.train, "--multiplication_factor", "4", "--seed", "3"]
    assert augment(*options, "--output_path", tmp_path / "one.json").status == 0
    words = [*options, "--output_path", str(tmp_path / "two.json"), "--model", masked_lm]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *words, "--device", "cpu"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_the_options_and_their_defaults_are_those_of_the_function() -> None:
    data = ["--squad_path", "in.json", "--output_path", "out.json"]
    (arguments,) = build_parser().parse(data)
    assert arguments.of(SquadAugmentationOptions) == asdict(SquadAugmentationOptions())
    assert len(fields(SquadAugmentationOptions)) == 18
    (arguments,) = build_parser().parse([*data, "--max_words", "0"])
    assert arguments.max_words is None


@pytest.mark.parametrize("name", ["out.tsv", "out.jsonl.gz", "out.parquet"])
def test_tables(name: str, augment: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.tsv"
    source.write_text("text\tlabel\nthe big city river in rome\tyes\nno.\tno\n")
    result = augment(
        "--train_file", source, "--text_columns", "text", "--output_path", tmp_path / name,
        "--multiplication_factor", 3, "--replace_probability", 0.9,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    table = load_table(tmp_path / name)
    assert table["label"] == ["yes", "yes", "yes", "no"]
    assert table["text"][0] == "the big city river in rome" and table["text"][3] == "no."
    assert "4 rows" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tsv", name]


def test_number_ids_of_a_file(augment: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    text = "the big city river in rome"
    source.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n in (5, 2)))
    result = augment(
        "--train_file", source, "--text_columns", "text", "--output_path", tmp_path / "out.jsonl",
        "--multiplication_factor", 3, "--replace_probability", 0.9,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    assert load_table(tmp_path / "out.jsonl")["id"] == [5, 6, 8, 2, 7, 9]


def test_tags(augment: Callable[..., Result], tmp_path: Path) -> None:
    source = tmp_path / "in.conll"
    source.write_text("the\tO\nriver\tO\nrome\tB-place\n\n")
    stop = tmp_path / "none"
    stop.write_text("")
    result = augment(
        "--train_file", source, "--text_columns", "tokens", "--tag_column", "tags",
        "--output_path", tmp_path / "out.conll", "--multiplication_factor", 5,
        "--replace_probability", 1, "--no_include_original", "--stop_words", stop,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    table = load_table(tmp_path / "out.conll")
    assert table["tags"] == [["O", "O", "B-place"]] * len(table)
    assert all(row["tokens"][1] != "river" and row["tokens"][2] == "rome" for row in table)


def test_rows_that_the_file_cannot_hold_are_refused_before_the_work(
    augment: Callable[..., Result], tmp_path: Path
) -> None:
    table = Dataset.from_dict({"text": ["paris is a town"], "n": [float("nan")]})
    table.to_parquet(tmp_path / "in.parquet")
    result = augment(
        "--train_file", tmp_path / "in.parquet", "--text_columns", "text",
        "--output_path", tmp_path / "out.jsonl",
    )  # fmt: skip
    assert result.status == 2
    assert "row 0" in result.stderr
    assert ".parquet" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_the_file_that_is_read_is_not_replaced(
    augment: Callable[..., Result], tmp_path: Path
) -> None:
    source = tmp_path / "in.tsv"
    source.write_text("text\none two\n")
    (tmp_path / "link.tsv").symlink_to(source)
    result = augment(
        "--train_file", source, "--text_columns", "text", "--output_path", tmp_path / "link.tsv"
    )
    assert result.status == 2 and "is the file that is read" in result.stderr
    assert source.read_text() == "text\none two\n"
    assert {path.name for path in tmp_path.iterdir()} == {"in.tsv", "link.tsv"}


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        ([], ["either --squad_path or --train_file"]),
        (["--squad_path", "a", "--train_file", "b"], ["either --squad_path or --train_file"]),
        (["--train_file", "b"], ["--text_columns"]),
        (["--squad_path", "a", "--text_columns", "b"], ["--text_columns", "--squad_path"]),
        (["--train_file", "a", "--text_columns", "b", "--drop_answers"], ["--drop_answers"]),
        (["--squad_path", "nowhere.json"], ["squad_path='nowhere.json'", "no such file"]),
        (["--train_file", "nowhere.tsv", "--text_columns", "b"], ["nowhere.tsv"]),
        (["--squad_path", "TRAIN", "--masking", "double"], ["--masking", "grouped"]),
        (["--squad_path", "TRAIN", "--glove_path", "no.txt"], ["glove_path='no.txt'"]),
        (["--squad_path", "TRAIN", "--replace_probability", "2"], ["replace_probability=2"]),
    ],
)
def test_bad_requests(
    argv: list[str], fragments: list[str], files: Files, augment: Callable[..., Result],
    tmp_path: Path,
) -> None:  # fmt: skip
    words = [files.train if word == "TRAIN" else word for word in argv]
    target = tmp_path / ("out.tsv" if "--train_file" in argv else "out.json")
    result = augment(*words, "--output_path", target)
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr
    assert not list(tmp_path.iterdir())
