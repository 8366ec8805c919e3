from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from squad_files import CONTEXTS, check_answers, document, paragraphs, questions, write

from hf_distill.augmentation import (
    AugmentationSummary,
    SquadAugmentationOptions,
    WordSubstituter,
    augment_squad,
)
from hf_distill.augmentation.squad import SquadCopier
from hf_distill.tasks.question_answering import load_question_answering_dataset

QAS = [{"id": "q", "question": "?", "answers": [{"text": "half", "answer_start": 12}]}]
Augment = Callable[..., dict[str, Any]]


@pytest.fixture
def augment(tmp_path: Path, saved_model: str) -> Augment:
    def call(content: Any = None, *, version_2: bool = False, **options: Any) -> dict[str, Any]:
        source = write(tmp_path / "in.json", content or document(version_2=version_2))
        target = tmp_path / "out.json"
        options = {"multiplication_factor": 4, "model": saved_model, "device": "cpu", **options}
        call.summary = augment_squad(source, target, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json", "out.json"]
        return json.loads(target.read_text(encoding="utf-8"))

    return call


@pytest.mark.parametrize("version_2", [False, True])
def test_answers_survive_and_everything_else_stays(augment: Augment, version_2: bool) -> None:
    content = augment(version_2=version_2, replace_probability=0.9)
    original = document(version_2=version_2)
    found = paragraphs(content)
    assert len(found) == 12
    assert check_answers(content) == 4 * check_answers(original)
    assert list(content) == list(original)
    for new, old in zip(content["data"], original["data"], strict=True):
        assert {**new, "paragraphs": 0} == {**old, "paragraphs": 0}
    for place, old in enumerate(paragraphs(original)):
        first, *copies = found[4 * place : 4 * place + 4]
        assert first == old
        assert len({one["context"] for one in (first, *copies)}) == 4
        for number, copy in enumerate(copies, start=1):
            assert {**copy, "context": 0, "qas": 0} == {**old, "context": 0, "qas": 0}
            for new, question in zip(copy["qas"], old["qas"], strict=True):
                assert new["id"] == f"{question['id']}-aug{number}"
                for key in ("question", "is_impossible"):
                    assert new.get(key) == question.get(key)
                for field in ("answers", "plausible_answers"):
                    texts = [one["text"] for one in question.get(field, ())]
                    assert [one["text"] for one in new.get(field, ())] == texts
            # Words change, and nothing between them.
            assert re.sub(r"\w+", "", copy["context"]) == re.sub(r"\w+", "", old["context"])
    assert len({question["id"] for question in questions(content)}) == len(questions(content))
    assert augment.summary.copies == 9 and augment.summary.duplicates == 0


def test_the_output_is_a_valid_data_set(augment: Augment, tmp_path: Path) -> None:
    augment(version_2=True)
    assert len(load_question_answering_dataset(tmp_path / "out.json")) == 32


def test_every_answer_span_is_kept_and_other_words_are_not(augment: Augment) -> None:
    content = augment(replace_probability=1.0, multiplication_factor=2)
    for copy, old in zip(paragraphs(content)[1::2], CONTEXTS, strict=True):
        kept = [o for o, n in zip(old.split(), copy["context"].split(), strict=True) if o == n]
        assert len(kept) < len(old.split()) / 1.5
    assert "near the town" in paragraphs(content)[1]["context"]
    assert "young queen" in paragraphs(content)[3]["context"]


def test_seed_decides(augment: Augment) -> None:
    one = augment(seed=5)
    assert augment(seed=5) == one
    assert augment(seed=5, batch_size=1) == one
    assert augment(seed=6) != one


def test_a_copy_does_not_depend_on_the_factor_or_the_other_paragraphs(augment: Augment) -> None:
    few = augment(multiplication_factor=2)
    many = augment(multiplication_factor=4)
    assert paragraphs(many)[0::4] == paragraphs(few)[0::2]
    assert paragraphs(many)[1::4] == paragraphs(few)[1::2]
    alone = document()
    del alone["data"][0]
    assert paragraphs(augment(alone))[1] == paragraphs(many)[9]


def test_without_originals(augment: Augment) -> None:
    content = augment(include_original=False, multiplication_factor=3)
    assert [q["id"] for q in questions(content)][:4] == ["q1-aug1", "q2-aug1", "q1-aug2", "q2-aug2"]
    assert augment.summary.written_questions == 15


def test_questions_are_replaced_if_wanted(augment: Augment) -> None:
    before = [question["question"] for question in questions(document())]
    content = augment(augment_questions=True, replace_probability=0.8, multiplication_factor=2)
    after = [q["question"] for q in questions(content) if q["id"].endswith("-aug1")]
    assert len(after) == len(before)
    assert sum(a != b for a, b in zip(after, before, strict=True)) >= 3
    assert check_answers(content) > 0


@pytest.mark.parametrize("version_2", [False, True])
def test_dropped_answers(augment: Augment, version_2: bool, tmp_path: Path) -> None:
    content = augment(version_2=version_2, drop_answers=True, replace_probability=1.0)
    copies = [question for question in questions(content) if "-aug" in question["id"]]
    assert all(question["answers"] == [] for question in copies)
    assert not any("plausible_answers" in question for question in copies)
    assert {q.get("is_impossible") for q in copies} == {True if version_2 else None}
    assert "Paris" not in paragraphs(content)[1]["context"]
    load_question_answering_dataset(tmp_path / "out.json")


def test_nothing_changes_at_probability_0(augment: Augment) -> None:
    assert augment(replace_probability=0.0) == document()
    assert augment.summary == AugmentationSummary(3, 5, 0, 5, 9, 0)


def test_duplicates_are_dropped(augment: Augment) -> None:
    content = document()
    content["data"][0]["paragraphs"][1] = {"context": "", "qas": []}
    content["data"][1]["paragraphs"] = [{"context": "1999 the 25 ... 😀", "qas": []}]
    found = [paragraph["context"] for paragraph in paragraphs(augment(content))]
    assert len(found) == 6 and found[4:] == ["", "1999 the 25 ... 😀"]


def test_odd_text_stays_as_it_is(augment: Augment, tmp_path: Path) -> None:
    text = "\"river\" ``town'' \u05e9\u05dc the e-mail Größe\r\n\tcan't 東京 😀 \x00 big river"
    question = {**QAS[0], "answers": [{"text": "half", "answer_start": 6}]}
    texts = [{"context": text, "qas": []}, {"context": "It is half", "qas": [question]}]
    content = {"data": [{"paragraphs": texts}]}
    found = augment(content)
    assert paragraphs(found)[0]["context"] == text
    pattern = re.escape(text)
    for word in ("river", "town", "big"):
        pattern = pattern.replace(word, r"\w+")
    copies = [p["context"] for p in paragraphs(found)[1:] if "e-mail" in p["context"]]
    assert len(copies) == 2
    assert all(re.fullmatch(pattern, copy) for copy in copies), copies


def test_half_a_surrogate_pair(tmp_path: Path, saved_model: str) -> None:
    """Refused in what is read, and carried in what is not."""
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    content = document()
    paragraph = paragraphs(content)[0]
    paragraph["note"], paragraph["n"] = "\ud83d", 0.25
    source.write_text(json.dumps(content).replace("0.25", "0.250"))
    augment_squad(source, target, model=saved_model, device="cpu", multiplication_factor=2)
    assert target.read_text().count(r'"note": "\ud83d", "n": 0.250') == 2
    paragraph["context"] += " \ud83d"
    source.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"data\[0\]\.paragraphs\[0\].*half a character"):
        augment_squad(source, target, model=saved_model, device="cpu")


def test_no_plausible_answers(augment: Augment) -> None:
    content = document(version_2=True)
    for question in questions(content):
        question["plausible_answers"] = None
    assert {question["plausible_answers"] for question in questions(augment(content))} == {None}


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("as_lists", [True, False])
def test_rows_of_the_hub(augment: Augment, tmp_path: Path, as_lists: bool, original: bool) -> None:
    """They stay rows, and their texts come out as from paragraphs."""
    nested = document()
    for paragraph in paragraphs(nested):
        del paragraph["qas"][1:]
    rows = [
        {"id": question["id"], "extra": 1.5, **paragraph, **question}
        for paragraph in paragraphs(nested)
        for question in paragraph["qas"]
    ]
    for row in rows:
        del row["qas"]
        if as_lists:
            row["answers"] = {
                key: [one[key] for one in row["answers"]] for key in ("text", "answer_start")
            }
    options: dict[str, Any] = {"replace_probability": 0.9, "include_original": original}
    wanted = augment(nested, **options)
    found = augment({"version": "x", "data": rows}, **options)
    loaded = load_question_answering_dataset(tmp_path / "out.json")
    assert [list(row) for row in found["data"]] == [list(rows[0])] * len(loaded)
    expected = {
        question["id"]: (paragraph["context"], [one["text"] for one in question["answers"]])
        for paragraph in paragraphs(wanted)
        for question in paragraph["qas"]
    }
    assert {row["id"]: (row["context"], row["answers"]["text"]) for row in loaded} == expected
    if original:
        assert [row for row in found["data"] if "-aug" not in str(row["id"])] == rows


def test_a_file_with_copies_is_augmented_again(augment: Augment, tmp_path: Path) -> None:
    content: Any = None
    for generation in ("", "2.", "3."):
        content = augment(content, multiplication_factor=3, replace_probability=1.0)
        ids = [question["id"] for question in questions(content)]
        assert f"{ids[0]}-aug{generation}2" in ids
        found = load_question_answering_dataset(tmp_path / "out.json")
        assert found["id"] == ids and len(set(ids)) == len(ids)


def test_numbers_are_carried_as_they_are_written(tmp_path: Path, saved_model: str) -> None:
    content = document()
    content["version"] = content["data"][0]["score"] = "NUMBER"
    content["data"][0]["paragraphs"][0]["scores"] = ["NUMBER"]
    text = json.dumps(content).replace('"NUMBER"', "1.10").replace("1.10", "-0.50E+3", 1)
    (tmp_path / "in.json").write_text(text)
    augment_squad(
        tmp_path / "in.json", tmp_path / "out.json", model=saved_model, device="cpu",
        multiplication_factor=2,
    )  # fmt: skip
    found = (tmp_path / "out.json").read_text()
    assert sorted(re.findall(r"[^ {]*: \[?[-0-9]*\.[^,}]*", found)) == [
        '"score": 1.10', '"scores": [1.10]', '"scores": [1.10]', '"version": -0.50E+3',
    ]  # fmt: skip


def test_number_ids_and_gzip(tmp_path: Path, saved_model: str) -> None:
    content = document()
    for number, question in enumerate(questions(content)):
        question["id"] = number
    source = tmp_path / "in.json.gz"
    source.write_bytes(gzip.compress(json.dumps(content).encode("utf-8-sig")))
    outputs = []
    for name in ("one.json.gz", "two.json.gz"):
        target = tmp_path / name
        augment_squad(source, target, multiplication_factor=2, model=saved_model, device="cpu")
        outputs.append(target.read_bytes())
    assert outputs[0] == outputs[1]
    ids = [question["id"] for question in questions(json.loads(gzip.decompress(outputs[0])))]
    assert ids[:4] == [0, 1, "0-aug1", "1-aug1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed JSON"),
        ("", "is empty"),
        ("[]", "layout of SQuAD"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "no field 'context'"),
        (json.dumps(document()).replace('"answer_start": 0', '"answer_start": 1'), "'Paris'"),
        (
            re.sub(
                '("plausible_answers": .*?"answer_start": )0',
                r"\1-999",
                json.dumps(document(version_2=True)),
                count=1,
            ),
            "plausible_answers: answer_start=-999 of 'Paris' is negative",
        ),
        (
            json.dumps(document(version_2=True)).replace(
                '"plausible_answers": [{"text": "Paris"', '"plausible_answers": [{"text": "Pariss"'
            ),
            "plausible_answers: expected 'Pariss' at answer_start=0 but found 'Paris ",
        ),
    ],
)
def test_bad_input(content: Any, message: str, tmp_path: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        augment_squad(source, tmp_path / "out.json", model="nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"replace_probability": -1}, ValueError, "replace_probability=-1"),
        ({"multiplication_factor": 0}, ValueError, "multiplication_factor=0"),
        ({"num_proc": 0}, ValueError, "num_proc=0"),
        ({"masking": "double"}, ValueError, "masking='double'"),
        ({"glove_path": "nowhere.txt"}, FileNotFoundError, "glove_path='nowhere.txt'"),
        ({"stop_words": "nowhere.txt"}, FileNotFoundError, "nowhere.txt"),
        ({"output_path": "x.txt"}, ValueError, "output_path='x.txt'"),
        ({"output_path": "in.json"}, ValueError, "in.json' is the file that is read"),
        ({"squad_path": "nowhere.json"}, FileNotFoundError, "squad_path='nowhere.json'"),
    ],
)
def test_bad_options(
    options: dict[str, Any], error: type, message: str, tmp_path: Path, saved_model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = write(tmp_path / "in.json", document())
    defaults = {"squad_path": source, "output_path": tmp_path / "out.json", "model": saved_model}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        augment_squad(**{**defaults, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_a_full_disk_leaves_what_was_there(
    augment: Augment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = augment()
    complete = SquadCopier.versions

    def full(self: Any, *args: Any) -> Any:
        yield from complete(self, *args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SquadCopier, "versions", full)
    with pytest.raises(OSError, match="No space left"):
        augment(seed=7)
    assert json.loads((tmp_path / "out.json").read_text()) == before
    # What was computed is not lost.
    assert list((tmp_path / ".out.json.parts").glob("part-*"))
    monkeypatch.undo()
    monkeypatch.setattr("hf_distill.augmentation.masked_lm.MaskedLanguageModel.__init__", None)
    monkeypatch.setattr("hf_distill.augmentation.word_vectors.PACKAGE", "no_such_package")
    assert augment(seed=7, resume=True) != before


PIECES = st.sampled_from(
    [
        "river",
        "Town",
        "the",
        "can't",
        "3.14",
        "😀",
        "“old”",
        "שלום",
        "東京",
        "GREEN",
        "\n",
        "e-mail",
    ]
)


class _Stored:
    """Candidates as the parts hold them, computed at once."""

    def __init__(self, substituter: WordSubstituter) -> None:
        self.substituter = substituter

    def __call__(self, item: Any) -> Any:
        return self.substituter.candidates([item.text])[0]


@settings(max_examples=60)
@given(
    st.one_of(st.lists(PIECES, max_size=25).map(" ".join), st.text(max_size=60)),
    st.data(),
    st.integers(0, 3),
)
def test_answers_of_any_text_survive(
    substituter: WordSubstituter, text: str, data: st.DataObject, seed: int
) -> None:
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted)
    spans = [s for s in data.draw(st.lists(places, max_size=3)) if text[s[0] : s[1]].strip()]
    qas = [
        {
            "id": str(index),
            "question": "?",
            "answers": [{"text": text[start:end], "answer_start": start}],
        }
        for index, (start, end) in enumerate(spans)
    ]
    copier = SquadCopier(
        SquadAugmentationOptions(replace_probability=0.8, seed=seed, multiplication_factor=4)
    )
    versions = list(copier.versions({"context": text, "qas": qas}, _Stored(substituter)))
    assert versions[0]["context"] == text
    assert len({one["context"] for one in versions}) == len(versions)
    check_answers({"data": [{"paragraphs": versions}]})
