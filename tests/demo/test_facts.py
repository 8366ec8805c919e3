"""What the demo asks is true, findable or really unanswerable, and never seen in training."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.demo.facts import (
    KINDS,
    Entity,
    ask,
    load_entities,
    split_entities,
    squad_records,
    write_passages,
    write_squad_files,
)
from hf_distill.tasks.question_answering.data import is_v2, load_question_answering_dataset

SEEDS = st.integers(0, 10_000)


class Asked(NamedTuple):
    """What a question is about, read back from its words alone."""

    relation: str
    entity: str | None
    value: str | None


def facts() -> dict[str, dict[str, str]]:
    folder = resources.files("hf_distill.demo").joinpath("data")
    records = [json.loads(folder.joinpath(f"{kind}.json").read_text("utf-8")) for kind in KINDS]
    return {record["name"]: record for of_kind in records for record in of_kind}


FACTS = facts()


def pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    words = {"e": "(?P<entity>.+?)", "es": "(?P<entity>.+?)'s?", "v": "(?P<value>.+?)"}
    return re.compile(
        "".join(words[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)),
        re.IGNORECASE,
    )


PATTERNS = [
    (relation, pattern(template))
    for kind in KINDS.values()
    for relation, wording in kind.relations.items()
    for template in (*wording.questions, *wording.reverse_questions)
]
LOWER = {name.lower(): name for name in FACTS}


def understand(question: str) -> Asked:
    """The one reading of a question."""
    readings = set()
    for relation, expression in PATTERNS:
        match = expression.fullmatch(question)
        if match is None:
            continue
        groups = match.groupdict()
        entity = LOWER.get((groups.get("entity") or "").lower())
        if entity or any(f.get(relation) == groups.get("value") for f in FACTS.values()):
            readings.add(Asked(relation, entity, groups.get("value")))
    assert len(readings) == 1, (question, readings)
    return readings.pop()


def document(seed: int, prefix: str = "x") -> dict[str, Any]:
    train, validation = split_entities()
    entities = train + validation
    chance = random.Random(seed)
    return squad_records(write_passages(entities, 8, chance), entities, 5, chance, prefix)


def rows(squad: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield paragraph["context"], question


def has_words(text: str, words: str) -> bool:
    plain = re.sub("^the ", "", words.lower())
    return re.search(rf"(?:^|[^\w]){re.escape(plain)}(?:$|[^\w])", text.lower()) is not None


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_answers_stand_where_the_file_says_and_are_true(seed: int) -> None:
    for context, question in rows(document(seed)):
        assert question["is_impossible"] == (not question["answers"])
        asked = understand(question["question"])
        for answer in question["answers"]:
            start = answer["answer_start"]
            assert context[start : start + len(answer["text"])] == answer["text"]
            text = answer["text"]
            if asked.entity is not None:
                assert text.lower() == FACTS[asked.entity][asked.relation].lower()
            else:
                assert FACTS[LOWER[text.lower()]][asked.relation] == asked.value


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_what_is_called_unanswerable_is_not_told(seed: int) -> None:
    for context, question in rows(document(seed)):
        if not question["is_impossible"]:
            continue
        asked = understand(question["question"])
        if asked.entity is None:
            assert asked.value is not None
            assert not has_words(context, asked.value)
            continue
        value = FACTS[asked.entity].get(asked.relation)
        assert value is None or not has_words(context, value)
        for statement in KINDS[kind_of(asked.entity)].relations[asked.relation].statements:
            assert not re.search(stated_by(statement, asked.entity), context, re.IGNORECASE)


def kind_of(name: str) -> str:
    return next(k for k in KINDS if any(entity.name == name for entity in load_entities(k)))


def stated_by(template: str, name: str) -> str:
    parts = re.split(r"\{(\w+)\}", template)
    words = {"e": re.escape(name), "es": re.escape(name) + "'s?", "v": r"[^;]+"}
    return "".join(words[p] if i % 2 else re.escape(p) for i, p in enumerate(parts))


def test_a_value_that_two_entities_share_is_not_asked_the_other_way_round() -> None:
    shared = {"discoverer": "Humphry Davy", "discovery_year": "1807"}
    entities = [Entity("elements", name, shared) for name in ("sodium", "potassium", "calcium")]
    others = [entity for entity in load_entities("elements") if entity not in entities]
    chance = random.Random(0)
    asked = [
        understand(question.text)
        for passage in write_passages(entities, 60, chance)
        for question in ask(passage, others, 5, chance)
        if question.answer
    ]
    assert len(asked) > 100
    assert all(reading.entity is not None for reading in asked)


def test_training_and_validation_share_no_entity() -> None:
    train, validation = split_entities()
    assert not {entity.name for entity in train} & {entity.name for entity in validation}
    assert len(train) + len(validation) == len(FACTS)
    for kind in KINDS:
        assert 30 < sum(entity.kind == kind for entity in validation) < len(FACTS) / 2


def test_the_files_share_no_entity_either(tmp_path: Path) -> None:
    train, validation = write_squad_files(
        tmp_path, seed=3, train_passages=100, validation_passages=60
    )
    subjects = []
    for path in (train, validation):
        squad = json.loads(path.read_text("utf-8"))
        subjects.append({n for a in squad["data"] for n in a["title"].split(", ")})
        asked = {understand(question["question"]) for _, question in rows(squad)}
        subjects[-1] |= {a.entity for a in asked if a.entity is not None}
    assert subjects[0] and subjects[1] and not subjects[0] & subjects[1]


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from hf_distill.demo.facts import write_squad_files;"
        "write_squad_files(pathlib.Path(sys.argv[1]), seed=5, train_passages=30, "
        "validation_passages=10)"
    )
    for hash_seed in "1", "2":
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / hash_seed)],
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    write_squad_files(tmp_path / "other", seed=6, train_passages=30, validation_passages=10)
    for name in "train.json", "validation.json":
        first = (tmp_path / "1" / name).read_bytes()
        assert first == (tmp_path / "2" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()


def test_the_package_reads_the_files_that_the_demo_writes(tmp_path: Path) -> None:
    train, validation = write_squad_files(
        tmp_path / "new" / "folder", seed=0, train_passages=60, validation_passages=40
    )
    ids: list[str] = []
    for path, passages in ((train, 60), (validation, 40)):
        dataset = load_question_answering_dataset(path)
        assert is_v2(dataset)
        assert 4.5 * passages < len(dataset) <= 5 * passages
        unanswerable = sum(not answers["text"] for answers in dataset["answers"]) / len(dataset)
        assert 0.15 < unanswerable < 0.45
        ids += dataset["id"]
        assert len(set(dataset["question"])) > 0.6 * len(dataset)
        assert len(set(dataset["context"])) == passages
    assert len(set(ids)) == len(ids)
    assert not list(train.parent.glob("*.tmp"))


def test_distractors_are_there() -> None:
    """Most values that are asked for stand beside another value of the same property."""
    train, _ = split_entities()
    passages = write_passages(train, 200, random.Random(0))
    beside = [
        sum(other.relation == stated.relation for other in passage.statements) > 1
        for passage in passages
        for stated in passage.statements
    ]
    assert sum(beside) > 0.5 * len(beside)
    assert all(len(passage.entities) >= 2 for passage in passages)
    assert len({e.kind for e in train}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_of_the_data_has_words(kind: str) -> None:
    entities: list[Entity] = load_entities(kind)
    known = {relation for entity in entities for relation in entity.facts}
    assert known == set(KINDS[kind].relations)
    assert all(entity.facts and all(entity.facts.values()) for entity in entities)
    assert len({entity.name.lower() for entity in entities}) == len(entities)


@pytest.mark.parametrize(
    "relation",
    [pytest.param(r, id=f"{k}-{n}") for k in KINDS for n, r in KINDS[k].relations.items()],
)
def test_templates_name_what_they_must(relation: Any) -> None:
    def names(template: str) -> set[str]:
        return {name.removesuffix("s") for name in re.findall(r"\{(\w+)\}", template)}

    assert len(relation.statements) >= 3 and len(relation.questions) >= 3
    assert all(names(template) == {"e", "v"} for template in relation.statements)
    assert all(names(template) == {"e"} for template in relation.questions)
    assert all(names(template) == {"v"} for template in relation.reverse_questions)
    for templates in (relation.statements, relation.questions, relation.reverse_questions):
        assert len(set(templates)) == len(templates)
    assert all(q.endswith("?") or q.endswith(".") for q in relation.questions)
