from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from masked_lms import WORDS

from hf_distill.augmentation import WordSubstituter, augment_dataset
from hf_distill.tasks.errors import TaskDataError

TEXTS = [" ".join(WORDS[i : i + 9]) for i in (0, 9, 18)]
TAGS = ["O", "B-place", "I-place"]
OPTIONS: dict[str, Any] = {"multiplication_factor": 4, "replace_probability": 0.7}


def tagged(as_names: bool = False) -> Dataset:
    tokens = [["The", "old", "London", "Bridge", "stands", "!"], ["", "river"], []]
    tags = [[0, 0, 1, 2, 0, 0], [0, 1], []]
    kind: Any = Value("string") if as_names else ClassLabel(names=TAGS)
    return Dataset.from_dict(
        {
            "tokens": tokens,
            "ner_tags": [[TAGS[t] for t in row] for row in tags] if as_names else tags,
            "id": ["a", "b", "c"],
        },
        features=Features(
            {"tokens": List(Value("string")), "ner_tags": List(kind), "id": Value("string")}
        ),
    )


def test_labels_are_carried_and_copies_follow_their_row(substituter: WordSubstituter) -> None:
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=["no", "yes"]),
            "score": Value("float32"),
        }
    )
    rows = {"text": TEXTS, "label": [0, 1, 0], "score": [0.5, 1.5, 2.5]}
    dataset = Dataset.from_dict(rows, features=features)
    found = augment_dataset(dataset, ["text"], substituter=substituter, **OPTIONS)
    assert found is not None and found.features == features
    assert found["label"] == [0] * 4 + [1] * 4 + [0] * 4
    assert found["score"] == [0.5] * 4 + [1.5] * 4 + [2.5] * 4
    assert found["text"][::4] == TEXTS
    assert len(set(found["text"])) == 12
    again = augment_dataset(dataset, "text", substituter=substituter, **OPTIONS)
    assert again is not None and again["text"] == found["text"]
    # The copies are those of the text by itself.
    alone = substituter.augment(TEXTS[1], copies=3, replace_probability=0.7)
    assert found["text"][5:8] == alone


def test_pairs_are_replaced_each_for_itself(substituter: WordSubstituter) -> None:
    dataset = Dataset.from_dict(
        {"premise": TEXTS, "hypothesis": [TEXTS[1], None, ""], "label": [0, 1, 2]}
    )
    found = augment_dataset(dataset, ["premise", "hypothesis"], substituter=substituter, **OPTIONS)
    assert found is not None and found["label"] == [0] * 4 + [1] * 4 + [2] * 4
    assert found["hypothesis"][4:] == [None] * 4 + [""] * 4
    assert len({*found["premise"][:4]}) == len({*found["hypothesis"][:4]}) == 4


@pytest.mark.parametrize("as_names", [False, True])
def test_tags_stay_aligned_and_entities_stay(substituter: WordSubstituter, as_names: bool) -> None:
    dataset = tagged(as_names)
    options = {**OPTIONS, "replace_probability": 1.0, "include_original": False}
    found = augment_dataset(
        dataset, ["tokens"], tag_column="ner_tags", substituter=substituter, **options
    )
    assert found is not None and found.features == dataset.features
    assert found["id"] == ["a-aug1", "a-aug2", "a-aug3", "a-aug4"]
    for row in found:
        assert row["ner_tags"] == dataset[0]["ner_tags"]
        assert row["tokens"][0] == "The" and row["tokens"][2:4] == ["London", "Bridge"]
        assert row["tokens"][5] == "!" and len(row["tokens"]) == 6
        assert row["tokens"][1] != "old" and row["tokens"][4] != "stands"
    free = augment_dataset(dataset, ["tokens"], substituter=substituter, **options)
    assert free is not None
    assert all(row["tokens"][2] != "London" for row in free if row["id"].startswith("a"))
    assert "b-aug1" in free["id"] and free[4]["tokens"][0] == ""


def test_answers_move(substituter: WordSubstituter) -> None:
    text = "the river town near the old bridge is green"
    answers = {"text": ["old bridge", "town"], "answer_start": [24, 10]}
    dataset = Dataset.from_dict(
        {"id": ["q"], "context": [text], "question": ["big river?"], "answers": [answers]}
    )
    found = augment_dataset(
        dataset, ["context", "question"], answer_column="answers", substituter=substituter,
        multiplication_factor=6, replace_probability=0.9,
    )  # fmt: skip
    assert found is not None and len({*found["context"]}) == 6 == len({*found["id"]})
    for row in found:
        for start, one in zip(row["answers"]["answer_start"], answers["text"], strict=True):
            assert row["context"][start:].startswith(one)
    pairs = zip(*answers.values(), strict=True)
    listed = [{"text": one, "answer_start": start} for one, start in pairs]
    in_lists = Dataset.from_list([{**dataset[0], "answers": listed}])
    same = augment_dataset(
        in_lists, ["context", "question"], answer_column="answers", substituter=substituter,
        multiplication_factor=6, replace_probability=0.9,
    )  # fmt: skip
    assert same is not None and same["context"] == found["context"]
    for row, other in zip(same, found, strict=True):
        starts = [one["answer_start"] for one in row["answers"]]
        assert starts == other["answers"]["answer_start"]


@pytest.mark.parametrize(
    ("text", "start", "message"),
    [
        ("sea", 0, "An answer .answers. is not in 'context': expected 'sea' .* but found 'the'"),
        ("river", -8, "answer_start=-8 of 'river' is negative"),
        (None, 0, r"A row.answers\[0\].text must be str"),
    ],
)
def test_answers_that_are_elsewhere(
    text: str | None, start: int, message: str, substituter: WordSubstituter
) -> None:
    answers = {"text": [text], "answer_start": [start]}
    dataset = Dataset.from_dict({"context": ["the river is"], "answers": [answers]})
    with pytest.raises(TaskDataError, match=message):
        augment_dataset(dataset, ["context"], answer_column="answers", substituter=substituter)


@pytest.mark.parametrize("named", [None, "id"])
def test_whole_numbers_as_ids(substituter: WordSubstituter, named: str | None) -> None:
    dataset = Dataset.from_dict({"id": [7, None, 3], "text": TEXTS})
    options = {**OPTIONS, "substituter": substituter, "id_column": named}
    found = augment_dataset(dataset, ["text"], **options)
    assert found is not None and found.features == dataset.features
    assert found["id"] == [7, 8, 11, 14] + [None] * 4 + [3, 10, 13, 16]
    # Copy 3 has the same name when more are asked for, and copies of copies have new ones.
    more = augment_dataset(dataset, ["text"], **{**options, "multiplication_factor": 6})
    assert more is not None and more["id"][:4] == found["id"][:4]
    again = augment_dataset(found, ["text"], **options)
    assert again is not None
    ids = [one for one in again["id"] if one is not None]
    assert len(set(ids)) == len(ids) == 32


def test_ids_that_do_not_fit(substituter: WordSubstituter) -> None:
    features = Features({"id": Value("int8"), "text": Value("string")})
    dataset = Dataset.from_dict({"id": [120, 1, 2], "text": TEXTS}, features)
    with pytest.raises(TaskDataError, match="id_column='id' holds int8.*9 numbers after 120"):
        augment_dataset(dataset, ["text"], substituter=substituter, **OPTIONS)


def test_the_result_is_on_the_disk(substituter: WordSubstituter, tmp_path: Path) -> None:
    path = tmp_path / "more.arrow"
    dataset = Dataset.from_dict({"text": TEXTS})
    found = augment_dataset(dataset, ["text"], substituter=substituter, cache_file_name=path)
    assert found is not None
    assert [file["filename"] for file in found.cache_files] == [str(path)]
    assert [one.name for one in tmp_path.iterdir()] == ["more.arrow"]
    temporary = augment_dataset(dataset, ["text"], substituter=substituter)
    assert temporary is not None and temporary["text"] == found["text"]


def test_a_model_by_name_and_processes(saved_model: str, tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"text": TEXTS})
    options = {**OPTIONS, "model": saved_model, "device": "cpu", "stop_words": {"river"}}
    one = augment_dataset(dataset, ["text"], **options)
    two = augment_dataset(dataset, ["text"], work_folder=tmp_path / "work", resume=True, **options)
    assert one is not None and two is not None and one["text"] == two["text"]
    assert all(text.startswith("river ") for text in one["text"][:4])
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        (["nope"], {}, TaskDataError, "text_columns='nope'.*tokens, ner_tags, id"),
        ([], {}, TaskDataError, "text_columns is empty"),
        (["ner_tags"], {}, TaskDataError, "neither texts nor lists of words"),
        (["tokens"], {"tag_column": "nope"}, TaskDataError, "tag_column='nope'"),
        (["tokens"], {"tag_column": "id"}, TaskDataError, "tag_column='id'"),
        (["id"], {"tag_column": "ner_tags"}, TaskDataError, "needs a column with lists of words"),
        (["tokens"], {"id_column": "ner_tags"}, TaskDataError, "id_column='ner_tags'"),
        (["tokens"], {"multiplication_factor": 0}, ValueError, "multiplication_factor=0"),
        (["tokens"], {"resume": True}, ValueError, "resume"),
        (["tokens"], {"model": "x"}, ValueError, "model: a substituter is passed"),
        (["tokens"], {"num_proc": 2}, ValueError, "num_proc=2"),
    ],
)
def test_bad_options(
    columns: list[str], options: dict[str, Any], error: type, message: str,
    substituter: WordSubstituter,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        augment_dataset(tagged(), columns, substituter=substituter, **options)


def test_bad_data(substituter: WordSubstituter, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["O"]]})
    with pytest.raises(TaskDataError, match="2 words.*1 tags"):
        augment_dataset(rows, ["tokens"], tag_column="tags", substituter=substituter)
    with pytest.raises(TypeError, match="DatasetDict"):
        augment_dataset(DatasetDict({"train": rows}), ["tokens"], substituter=substituter)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="work_folder=None"):
        augment_dataset(rows, ["tokens"], substituter=substituter)
