from __future__ import annotations

import json
import math
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from language_models import language_model, log_probability, tokenizer
from tiny import bert_config, model_for
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

import hf_distill.labelling.output as output
import hf_distill.labelling.work as work
from hf_distill.files import folder_hash
from hf_distill.labelling import Labelled, label_dataset
from hf_distill.labelling.scoring import WordScorer
from hf_distill.tasks.tables import load_table

WORDS = {"yes": ["hello", "Paris"], "no": ["shell", "the capital"], "maybe": ["Which"]}
TEXTS = [
    "Paris has been the capital",
    "Die Größe beträgt",
    "hello",
    "Which river does Paris lie on? How many people live there?",
    "It lies on the river Seine and was the capital of France for many thousands of years",
    "",
    "12.50 €",
]
PROMPT = "{text} is"


@pytest.fixture(scope="module")
def model() -> Any:
    return language_model()


@pytest.fixture
def label(model: Any) -> Any:
    def call(data: Dataset | None = None, words: Any = WORDS, **options: Any) -> Labelled:
        if data is None:
            data = Dataset.from_dict({"text": TEXTS, "number": range(len(TEXTS))})
        settings = {
            "teacher_model": model, "processing_class": tokenizer(), "prompt": PROMPT,
            "batch_size": 3, **options,
        }  # fmt: skip
        return label_dataset(data, label_words=words, **settings)

    return call


def reference(model: Any, text: str) -> dict[str, float]:
    """Written anew: sums over words of products over tokens, one at a time, normalised."""
    made, found = tokenizer(), {}
    start = len(made(f"{text} is")["input_ids"]) - 1
    for label, words in WORDS.items():
        encoded = [made(f"{text} is {word}")["input_ids"][:-1] for word in words]
        found[label] = sum(math.exp(log_probability(model, ids, start)) for ids in encoded)
    return {label: value / sum(found.values()) for label, value in found.items()}


def test_probabilities(model: Any, label: Any) -> None:
    labelled = label()
    assert labelled.dataset.column_names == ["text", "number", "probabilities"]
    assert labelled.dataset["text"] == TEXTS
    for text, row in zip(TEXTS, labelled.dataset["probabilities"], strict=True):
        assert row == pytest.approx(reference(model, text), rel=1e-4)
        assert list(row) == list(WORDS)
        assert sum(row.values()) == pytest.approx(1, abs=1e-12)
    assert labelled.manifest["cut"] == 0


@pytest.mark.parametrize("token", ["</s>", "<mask>", "<unk>"])
def test_special_tokens_in_texts_are_refused(token: str, label: Any) -> None:
    data = Dataset.from_dict({"text": ["Paris", f"it {token} is", token], "other": [token] * 3})
    with pytest.raises(ValueError, match=f"Row 1 of the column 'text' has '{token}'"):
        label(data)
    kept = label(data.select([0]))
    plain = label(Dataset.from_dict({"text": ["Paris"]}))
    assert kept.dataset["probabilities"] == plain.dataset["probabilities"]


def test_batches_and_parts_do_not_matter(label: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = label(batch_size=1).dataset["probabilities"]
    monkeypatch.setattr(work, "_PART_ROWS", 2)
    for row, other in zip(label(batch_size=7).dataset["probabilities"], one, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_calibration_divides_by_the_answers_without_a_text(model: Any, label: Any) -> None:
    free = [reference(model, text) for text in ("N/A", "", "[MASK]")]
    mean = {name: sum(row[name] for row in free) / 3 for name in WORDS}
    labelled = label(calibrate=True)
    assert labelled.manifest["calibration"]["probabilities"] == pytest.approx(mean, rel=1e-4)
    for text, row in zip(TEXTS, labelled.dataset["probabilities"], strict=True):
        divided = {name: value / mean[name] for name, value in reference(model, text).items()}
        wanted = {name: value / sum(divided.values()) for name, value in divided.items()}
        assert row == pytest.approx(wanted, rel=1e-4)


def test_pairs_and_other_columns_in_the_prompt(label: Any) -> None:
    data = Dataset.from_dict({"a": ["hello"], "b": ["shell"], "n": [1], "more": ["help"]})
    found = label(data, text_columns=["a", "b"], prompt="{text} {text_pair} {more} {a} is")
    assert found.manifest["prompt"]["written"] == "{a} {b} {more} {a} is hello"
    assert found.manifest["data"]["columns"] == ["a", "b", "more"]
    shown = label(data, text_columns=["a", "b"], prompt=None).manifest["prompt"]["written"]
    assert "{a}" in shown
    assert "{b}" in shown
    assert "hello, shell or Which" in shown


@pytest.mark.parametrize(
    ("text_columns", "written"),
    [
        (["body"], "body {body}, ? {text_pair} is hello"),
        (["text_pair", "text"], "body {text_pair}, ? {text} is hello"),
        (["text"], "body {text}, ? {text_pair} is hello"),
    ],
)
def test_the_chosen_columns_are_read_and_not_others_with_the_names_of_fields(
    text_columns: list[str], written: str, label: Any
) -> None:
    data = Dataset.from_dict({"text": ["1"], "text_pair": ["2"], "body": ["hello"]})
    found = label(data, text_columns=text_columns, prompt="body {text}, ? {text_pair} is")
    assert found.manifest["prompt"]["written"] == written
    default = label(data, text_columns=text_columns, prompt=None)
    assert default.manifest["data"]["columns"] == text_columns


def test_the_chat_template_is_used_where_there_is_one(label: Any) -> None:
    chat = tokenizer(chat=True)
    assert label().manifest["prompt"]["chat"] is False
    assert label(processing_class=chat).manifest["prompt"]["chat"] is True
    assert label(processing_class=chat, chat=False).dataset[:] == label().dataset[:]
    with pytest.raises(ValueError, match="chat"):
        label(chat=True)


def test_texts_are_cut_and_counted(label: Any) -> None:
    data = Dataset.from_dict({"text": ["Paris " * 100, "hello", "people " * 100]})
    labelled = label(data)
    assert labelled.manifest["cut"] == 2
    assert labelled.manifest["prompt"]["max_length"] == 64
    assert label(data, max_length=12).manifest["cut"] == 2


def test_an_empty_text_of_a_tokenizer_without_special_tokens(label: Any) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = PreTrainedTokenizerFast(tokenizer_object=bare)
    data = Dataset.from_dict({"text": ["Paris", "", "\n"]})
    assert len(label(data, processing_class=made).dataset) == 3


def test_a_format_of_the_data_changes_nothing(label: Any) -> None:
    data = Dataset.from_dict({"text": ["Paris"], "n": [1]})
    plain = label(data).dataset
    for formatted in (data.with_format("numpy", columns=["n"]), data.with_format("torch")):
        assert label(formatted).dataset[:] == plain[:]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_files(name: str, label: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    labelled = label(output_path=path, calibrate=True)
    assert load_table(path)[:] == labelled.dataset[:]
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(
        [name, f"{name}.manifest.json"]
    )
    manifest = json.loads((path.parent / f"{name}.manifest.json").read_text())
    assert manifest == json.loads(json.dumps(labelled.manifest))
    assert manifest["label_words"] == WORDS
    assert str(tmp_path) not in json.dumps(manifest)


class StoppedError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Let scoring fail after so many rows; the sizes of the batches."""
    sizes: list[int] = []
    scores = WordScorer.scores

    def failing(self: WordScorer, batch: Any) -> Any:
        if sum(sizes) >= rows:
            raise StoppedError
        sizes.append(len(batch))
        return scores(self, batch)

    monkeypatch.setattr(WordScorer, "scores", failing)
    return sizes


def test_an_interrupted_run_resumes(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_PART_ROWS", 2)
    target = tmp_path / "out.jsonl"
    label(output_path=tmp_path / "whole.jsonl")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 3 + 4)  # three rows of the check, two parts
        label(output_path=target)
    parts = sorted(path.name for path in (tmp_path / ".out.jsonl.parts").glob("part-*"))
    assert [name[:10] for name in parts] == ["part-00000", "part-00001"]
    assert not target.exists()
    # A damaged part is computed again.
    damaged = tmp_path / ".out.jsonl.parts" / parts[1]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with monkeypatch.context() as patch:
        sizes = stop_after(patch, 1000)
        label(output_path=target)
    assert sum(sizes) - 3 == len(TEXTS) - 2
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / ".out.jsonl.parts").exists()


def test_an_interrupted_run_with_other_options_is_not_resumed(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 4)
        label(output_path=target)
    before = folder_hash(tmp_path)
    changed = {
        "template": {"prompt": "{text} was"},
        "max_length": {"max_length": 20},
        "label_words": {"words": {"yes": ["hello"], "no": ["shell"]}},
        "labels": {"words": dict(reversed(WORDS.items()))},
        "teacher.weights_sha256": {"teacher_model": language_model(seed=1)},
        "data.sha256": {"data": Dataset.from_dict({"text": [*TEXTS[1:], "x"]})},
    }
    for name, options in changed.items():
        with pytest.raises(ValueError, match="output_path") as error:
            label(output_path=target, **options)
        assert name in str(error.value)
    assert folder_hash(tmp_path) == before
    label(output_path=target, calibrate=True, output_column="p", batch_size=1)


def test_a_finished_file_is_kept(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    labelled = label(output_path=target)
    with monkeypatch.context() as patch:
        sizes = stop_after(patch, 0)
        assert label(output_path=target).dataset[:] == labelled.dataset[:]
        assert sizes == []
    with pytest.raises(ValueError, match="calibrate was false and is now true"):
        label(output_path=target, calibrate=True)
    target.write_text(target.read_text().replace("Paris", "paris"))
    with pytest.raises(ValueError, match=r"out\.jsonl .* altered"):
        label(output_path=target)
    (tmp_path / "out.jsonl.manifest.json").unlink()
    with pytest.raises(ValueError, match=r"out\.jsonl\.manifest\.json"):
        label(output_path=target)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_other_columns_of_a_finished_file_are_written_again(
    name: str, label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / name
    before = label(Dataset.from_dict({"text": TEXTS, "gold": ["no"] * 7}), output_path=target)
    written = target.stat().st_mtime_ns
    changed = [
        Dataset.from_dict({"text": TEXTS, "gold": ["yes"] * 7}),
        Dataset.from_dict({"id": range(7), "text": TEXTS, "gold": ["yes"] * 7}),
        Dataset.from_dict({"text": TEXTS, "gold": ["yes"] * 7, "id": range(7)}),
        Dataset.from_dict({"text": TEXTS}),
    ]
    sizes = stop_after(monkeypatch, 0)
    for data in changed:
        labelled = label(data, output_path=target)
        assert labelled.dataset.column_names == [*data.column_names, "probabilities"]
        assert load_table(target)[:] == labelled.dataset[:]
        assert load_table(target).column_names == labelled.dataset.column_names
        assert labelled.dataset["probabilities"][:] == before.dataset["probabilities"][:]
        assert target.stat().st_mtime_ns != written
        written = target.stat().st_mtime_ns
        label(data, output_path=target)
        assert target.stat().st_mtime_ns == written
    assert sizes == []


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.parquet"])
def test_a_kill_while_a_file_is_written_loses_no_probability(
    name: str, rewritten: bool, label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.from_dict({"text": TEXTS, "gold": ["yes"] * 7})
    whole = label(data, output_path=tmp_path / "whole" / name, calibrate=True).dataset
    steps = ["write_json", "write_table", "rmtree", "write_json"]
    for last in range(2 * len(steps)):
        folder = tmp_path / str(last)
        if rewritten:
            label(output_path=folder / name, calibrate=True)
        done = []

        def step(name: str, original: Any, done: Any = done, last: int = last) -> Any:
            def call(*arguments: Any, **options: Any) -> None:
                done.append(name)
                if len(done) > last // 2 + last % 2:
                    raise StoppedError
                original(*arguments, **options)
                if len(done) > last // 2:
                    raise StoppedError

            return call

        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            for one in ("write_json", "write_table"):
                patch.setattr(output, one, step(one, getattr(output, one)))
            patch.setattr(output.shutil, "rmtree", step("rmtree", shutil.rmtree))
            label(data, output_path=folder / name, calibrate=True)
        with monkeypatch.context() as patch:
            sizes = stop_after(patch, 1000)
            labelled = label(data, output_path=folder / name, calibrate=True)
        # At most the check, and the prompts without a text, are computed again.
        assert sum(sizes) <= 3 + 3
        assert labelled.dataset[:] == whole[:] == load_table(folder / name)[:]
        assert {one.name for one in folder.iterdir()} == {name, f"{name}.manifest.json"}


def test_probabilities_that_were_altered_after_a_kill_are_refused(
    label: Any, tmp_path: Path
) -> None:
    target, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.manifest.json"
    label(output_path=target)
    manifest = json.loads(record.read_text())
    del manifest["output_sha256"], manifest["table_sha256"]
    record.write_text(json.dumps(manifest))
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    rows[3]["probabilities"]["yes"] += 1e-9
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"out\.jsonl .* altered"):
        label(output_path=target)


def test_files_with_one_name_and_other_endings_do_not_meet(label: Any, tmp_path: Path) -> None:
    for calibrate, name in enumerate(["out.jsonl", "out.parquet", "out.jsonl.gz"]):
        label(output_path=tmp_path / name, calibrate=calibrate > 0)
    assert "calibration" not in label(output_path=tmp_path / "out.jsonl").manifest


def test_a_chat_template_shows_the_date_of_the_run_that_is_resumed(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_PART_ROWS", 2)
    dated = tokenizer(chat=True)
    dated.chat_template = "{{ strftime_now('%S.%f') }}\n" + dated.chat_template
    options = {"processing_class": dated, "output_path": tmp_path / "out.jsonl", "max_length": 60}
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 3 + 4)
        label(**options)
    with monkeypatch.context() as patch:
        sizes = stop_after(patch, 1000)
        resumed = label(**options)
    assert sum(sizes) - 3 == len(TEXTS) - 4
    assert label(**options).manifest == resumed.manifest
    shown = datetime.fromisoformat(resumed.manifest["prompt"]["date"]).strftime("%S.%f")
    assert resumed.manifest["prompt"]["written"].startswith(f"{shown}\n<s>user")
    assert label().manifest["prompt"]["date"] is None


@pytest.mark.parametrize("value", [math.nan, b"x"])
def test_columns_that_a_file_cannot_hold_are_refused_before_the_work(
    value: Any, label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.from_dict({"text": ["Paris", "hello"], "other": [value, value]})
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"row 0 .* output_path"):
        stop_after(patch, 0)
        label(data, output_path=tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []
    label(data, output_path=tmp_path / "out.parquet")
    assert load_table(tmp_path / "out.parquet")["text"][:] == ["Paris", "hello"]


def test_a_full_disk_leaves_nothing_half(
    label: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("os.fsync", full)
        label(output_path=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    label(output_path=tmp_path / "out.jsonl")


def test_the_teacher_is_left_as_it_was(model: Any, label: Any) -> None:
    model.train()
    first, second = label(), label()
    assert model.training
    assert first.dataset[:] == second.dataset[:]
    model.eval()


def test_a_saved_teacher(model: Any, label: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    found = label(teacher_model=str(tmp_path / "lm"), processing_class=None)
    assert found.dataset[:] == label().dataset[:]
    assert found.manifest["teacher"]["name"] == "lm"
    assert found.manifest["teacher"]["dtype"] == "float32"
    half = label(teacher_model=str(tmp_path / "lm"), processing_class=None,
                 teacher_dtype="bfloat16", chat=False)  # fmt: skip
    assert half.manifest["teacher"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"output_path": "out.csv"}, ["output_path", "out.csv", ".jsonl"]),
        ({"output_path": "out.parquet.gz"}, ["output_path", "out.parquet.gz"]),
        ({"output_column": "number"}, ["output_column", "number"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"text_columns": "text"}, ["text_columns", "text"]),
        ({"text_columns": ["review"]}, ["text_columns", "review", "number"]),
        ({"text_columns": ["number"]}, ["text_columns", "number"]),
        ({"max_length": 65}, ["max_length=65", "64"]),
        ({"max_length": 1}, ["max_length=1"]),
        ({"prompt": "{review} is"}, ["prompt", "{review}", "text"]),
        ({"prompt": "{number} is"}, ["prompt", "{number}"]),
        ({"words": {"a": ["hello"]}}, ["label_words", "a"]),
        ({"words": {"a": ["Ω"], "b": ["Ψ"]}, "kind": "word_piece"}, ["label_words", "'Ω'", "'Ψ'"]),
        (
            {"words": {"a": ["hello"], "b": ["many people", "hello Paris"]}},
            ["label_words", "'hello' (a)", "'hello Paris' (b)"],
        ),
        (
            {"words": {"b": ["hello Paris capital of many people"], "a": ["hello"]}},
            ["label_words", "'hello' (a)", "'hello Paris capital of many people' (b)"],
        ),
        (
            {"words": {"a": ["hello Paris", "hello"], "b": ["shell"]}},
            ["label_words", "'hello' (a)", "'hello Paris' (a)"],
        ),
        ({"data": Dataset.from_dict({"text": []})}, ["dataset"]),
        ({"data": DatasetDict(train=Dataset.from_dict({"text": ["x"]}))}, ["DatasetDict"]),
        (
            {"data": Dataset.from_dict({"text": ["x"]}).to_iterable_dataset()},
            ["dataset", "IterableDataset", "from_generator"],
        ),
        ({"data": Dataset.from_dict({"text": ["x", None]})}, ["Row 1", "text"]),
        (
            {"data": Dataset.from_dict({"text": ["x"], "b": [None]}), "prompt": "{text} {b}"},
            ["prompt", "{b}"],
        ),
        (
            {"data": Dataset.from_dict({"text": ["x", "y"], "b": ["z", None]}),
             "prompt": "{text} {b}"},
            ["Row 1", "'b'"],
        ),
        ({"processing_class": None}, ["processing_class"]),
        ({"teacher_model": model_for("text-classification", seed=0)}, ["teacher_model", "Bert"]),
        ({"teacher_model": BertForMaskedLM(bert_config())}, ["teacher_model", "BertForMaskedLM"]),
        ({"teacher_model": torch.nn.Linear(2, 2)}, ["teacher_model", "Linear"]),
        ({"teacher_model": "no/such/model"}, ["teacher_model", "no/such/model"]),
    ],
)  # fmt: skip
def test_bad_input(
    options: dict[str, Any],
    fragments: list[str],
    label: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = options.pop("kind", None)
    if kind:
        options["processing_class"] = tokenizer(kind)
    with pytest.raises(ValueError, match=r"\w") as error:
        label(**options)
    assert [one for one in fragments if one not in str(error.value)] == []
    assert list(tmp_path.iterdir()) == []
