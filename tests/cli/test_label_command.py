from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Result
from language_models import language_model, tokenizer
from tiny import model_for
from tiny import tokenizer as student_tokenizer
from transformers import pipeline

ROWS = [("Paris lies on the river", "good"), ("hello", "bad"), ("many people", "good")]


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("causal_lm")
    language_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def label(causal_lm: str, program: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    def call(*argv: object, **files: str) -> Result:
        return program(
            "label", "--teacher_model", causal_lm, "--label_words", "good=helpful,help", "bad=hell",
            "--use_cpu", "--output_path", tmp_path / "out.jsonl", *argv,
        )  # fmt: skip

    return call


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines = "".join(f"{text},{label},007\n" for text, label in ROWS)
    return write(tmp_path / "reviews.csv", "review,sentiment,id\n" + lines)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_texts_are_labelled_and_scored(
    label: Callable[..., Result], reviews: Path, tmp_path: Path
) -> None:
    result = label(
        "--train_file", reviews, "--text_column", "review", "--prompt", "{review} is", "--calibrate"
    )
    assert result.status == 0, result.stderr
    rows = rows_of(tmp_path / "out.jsonl")
    assert [(row["review"], row["sentiment"], row["id"]) for row in rows] == [
        (*row, "007") for row in ROWS
    ]
    right = sum(max(p, key=p.get) == gold for p, (_, gold) in
                zip([row["probabilities"] for row in rows], ROWS, strict=True))  # fmt: skip
    assert f"{100 * right / 3:.2f}" in result.stdout
    assert "always answering 'good', the most frequent label: 66.7" in result.stdout
    assert "--teacher_column probabilities" in result.stderr
    assert "as plain text" in result.stderr
    assert "{review} is helpful" in result.stderr
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["calibration"]["texts"] == ["N/A", "", "[MASK]"]
    assert manifest["label_words"] == {"good": ["helpful", "help"], "bad": ["hell"]}


def test_without_gold_labels(label: Callable[..., Result], tmp_path: Path) -> None:
    file = write(tmp_path / "texts.txt", "Paris\nhello\n\n")
    result = label("--train_file", file, "--output_column", "p", "--max_train_samples", 2)
    assert result.status == 0, result.stderr
    assert "label_column" in result.stderr
    assert result.stdout == ""
    assert [list(row["p"]) for row in rows_of(tmp_path / "out.jsonl")] == [["good", "bad"]] * 2


def test_lines_of_a_text_file_are_read_like_the_cells_of_a_table(
    label: Callable[..., Result], tmp_path: Path
) -> None:
    found = []
    for name, text in {"t.txt": "Paris\r\nhello\r\n", "t.csv": "text\nParis\nhello\n"}.items():
        target = tmp_path / f"{name}.jsonl"
        result = label("--train_file", write(tmp_path / name, text), "--output_path", target)
        assert result.status == 0, result.stderr
        found.append(target.read_text())
    assert rows_of(target)[0]["text"] == "Paris"
    assert found[0] == found[1]


def test_minus_1_stands_for_no_label_if_all_labels_are_so(
    label: Callable[..., Result], tmp_path: Path
) -> None:
    lines = '{"text": "Paris", "label": -1}\n{"text": "hello", "label": -1}\n'
    result = label("--train_file", write(tmp_path / "n.jsonl", lines))
    assert result.status == 0, result.stderr
    assert "not scored" in result.stderr
    file = write(tmp_path / "m.jsonl", lines.replace("-1", "1", 1))
    result = label("--train_file", file, "--output_path", tmp_path / "m_out.jsonl")
    assert result.status == 2
    assert "Row 1 has the label -1" in result.stderr
    assert "--label_words" not in result.stderr


def test_numbers_as_gold_labels_are_counted_in_the_order_of_the_words(
    label: Callable[..., Result], tmp_path: Path
) -> None:
    lines = '{"text": "Paris", "label": 1}\n{"text": "hello", "label": 0}\n'
    file = write(tmp_path / "n.jsonl", lines)
    result = label("--train_file", file)
    assert "0 is 'good', 1 is 'bad'" in result.stderr
    scores = [max(row["probabilities"], key=row["probabilities"].get)
              for row in rows_of(tmp_path / "out.jsonl")]  # fmt: skip
    right = (scores[0] == "bad") + (scores[1] == "good")
    assert f"{50 * right:.2f}" in result.stdout
    (tmp_path / "out.jsonl").unlink()
    other = label("--train_file", file, "--class_names", "bad", "good")
    assert f"{100 - 50 * right:.2f}" in other.stdout


def test_pairs_and_too_long_texts(label: Callable[..., Result], tmp_path: Path) -> None:
    file = write(tmp_path / "p.csv", f"premise,hypothesis\n{'many ' * 200},hello\nParis,Seine\n")
    result = label("--train_file", file)
    assert result.status == 0, result.stderr
    assert "{premise}" in result.stderr
    assert "{hypothesis}" in result.stderr
    assert "The texts of 1 rows were too long" in result.stderr


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--label_words", "good=help,", "bad"], ["label_words", "'good'"]),
        (["--label_words", "good"], ["label_words"]),
        (["--label_words", "fair=help", "bad=hell"], ["--label_words", "'good'", "Row 0"]),
        (["--prompt", "Is it good?"], ["prompt", "{text}"]),
        (["--prompt", "{text} {sentiments}"], ["prompt", "{sentiments}", "review"]),
        (["--chat", "yes"], ["chat"]),
        (["--chat", "maybe"], ["--chat"]),
        (["--text_column", "texts"], ["text_column", "texts", "review"]),
        (["--label_column", "gold"], ["label_column", "gold"]),
        (["--output_path", "out.tsv"], ["output_path", "out.tsv"]),
        (["--output_column", "id"], ["output_column", "'id'"]),
        (["--teacher_model", "no_such/folder/here"], ["--teacher_model"]),
        (["--dataset_name", "sst2"], ["--train_file", "--dataset_name"]),
        (["--preprocessing_num_workers", "2"], ["--preprocessing_num_workers"]),
        (["--batch_size", "0"], ["batch_size"]),
        (["--max_length", "100"], ["max_length=100", "64"]),
        (["--doc_stride", "8"], ["--doc_stride"]),
    ],
)
def test_bad_input(
    options: list[str], fragments: list[str], label: Callable[..., Result], reviews: Path
) -> None:
    result = label("--train_file", reviews, "--text_column", "review", *options)
    assert result.status == 2, result.stderr
    assert [one for one in fragments if one not in result.stderr] == []
    assert [path.name for path in reviews.parent.iterdir()] == ["reviews.csv"]


def test_an_encoder_is_refused(label: Callable[..., Result], reviews: Path, files: Any) -> None:
    result = label("--train_file", reviews, "--teacher_model", files.models["teacher"])
    assert result.status == 2
    assert "BertForQuestionAnswering" in result.stderr


def test_a_student_learns_from_the_column(
    label: Callable[..., Result], program: Callable[..., Result], tmp_path: Path
) -> None:
    lines = "".join(f"{text}\n" for text, _ in ROWS * 8)
    assert label("--train_file", write(tmp_path / "t.csv", "text\n" + lines)).status == 0
    model_for("text-classification", seed=0).save_pretrained(tmp_path / "student")
    student_tokenizer().save_pretrained(tmp_path / "student")
    result = program(
        "train", "--task", "text-classification", "--student_model", tmp_path / "student",
        "--train_file", tmp_path / "out.jsonl", "--teacher_column", "probabilities",
        "--distillation_loss_weight", 1, "--temperature", 1, "--learning_rate", 5e-3,
        "--num_train_epochs", 30, "--per_device_train_batch_size", 24, "--use_cpu",
        "--save_strategy", "no", "--disable_tqdm", "true",
        "--output_dir", tmp_path / "distilled",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    trained = pipeline("text-classification", str(tmp_path / "distilled"), top_k=None)
    for row in rows_of(tmp_path / "out.jsonl")[:3]:
        found = {one["label"]: one["score"] for one in trained([row["text"]])[0]}
        assert found == pytest.approx(row["probabilities"], abs=0.1)
