"""Questions and answers about real facts, generated as SQuAD v2.0 files.

A passage speaks of several countries or several chemical elements, so that every answer has
distractors of its own type. A question asks for a value (*What is the capital of Austria?*), for
the entity (*Which country has Vienna as its capital?*), or for something that the passage does not
tell. No entity of the training file occurs in the validation file.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hf_distill.demo.wording import KINDS, Kind
from hf_distill.files import write_text

VALIDATION_SHARE = 0.35
UNANSWERABLE_SHARE = 0.3
REVERSE_SHARE = 0.2
ENTITIES_PER_PASSAGE = (2, 3)
FACTS_PER_ENTITY = (2, 2)


@dataclass(frozen=True)
class Entity:
    """One country or element.

    Attributes:
        kind: a key of ``wording.KINDS``.
        name: as it stands in the middle of a sentence, with its article.
        facts: the values by relation.
    """

    kind: str
    name: str
    facts: dict[str, str]


@dataclass(frozen=True)
class _Statement:
    """A fact as a passage states it, with the places ``(start, end)`` of value and name."""

    entity: Entity
    relation: str
    value: tuple[int, int]
    name: tuple[int, int]


@dataclass(frozen=True)
class Passage:
    """A text and the facts that it states."""

    text: str
    statements: tuple[_Statement, ...]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities it speaks of, in the order of the text."""
        return tuple({s.entity.name: s.entity for s in self.statements}.values())

    def tells(self, value: str) -> bool:
        """Whether the text has ``value`` anywhere, as whole words, whatever it says of it."""
        pattern = rf"(?<!\w){re.escape(value.removeprefix('the '))}(?!\w)"
        return re.search(pattern, self.text, re.IGNORECASE) is not None


def load_entities(kind: str) -> list[Entity]:
    """The entities of one kind from the package's data.

    Args:
        kind: ``"countries"`` or ``"elements"``.

    Returns:
        One ``Entity`` a record, in the order of the file.
    """
    text = resources.files("hf_distill.demo").joinpath(f"data/{kind}.json").read_text("utf-8")
    return [
        Entity(kind, record["name"], {k: v for k, v in record.items() if k != "name"})
        for record in json.loads(text)
    ]


def split_entities(seed: int) -> tuple[list[Entity], list[Entity]]:
    """All entities, split at random into those of training and those of validation."""
    chance = random.Random(f"entities {seed}")
    train: list[Entity] = []
    validation: list[Entity] = []
    for kind in KINDS:
        entities = load_entities(kind)
        chance.shuffle(entities)
        held_out = round(len(entities) * VALIDATION_SHARE)
        validation += entities[:held_out]
        train += entities[held_out:]
    return train, validation


def write_passages(entities: Sequence[Entity], count: int, chance: random.Random) -> list[Passage]:
    """``count`` passages about ``entities``, each about several of one kind."""
    kinds = sorted({entity.kind for entity in entities})
    weights = [sum(entity.kind == kind for entity in entities) for kind in kinds]
    passages = []
    for kind in chance.choices(kinds, weights, k=count):
        of_kind = [entity for entity in entities if entity.kind == kind]
        chosen = chance.sample(of_kind, chance.randint(*ENTITIES_PER_PASSAGE))
        passages.append(_write_passage(KINDS[kind], chosen, chance))
    return passages


def _write_passage(kind: Kind, entities: Sequence[Entity], chance: random.Random) -> Passage:
    # Few relations for many entities: what is asked of one is told of another.
    common = chance.sample(sorted(kind.relations), 5)
    groups = []
    for entity in entities:
        known = [name for name in common if name in entity.facts]
        known += [n for n in sorted(entity.facts) if n not in common][: max(0, 2 - len(known))]
        wanted = min(len(known), chance.randint(*FACTS_PER_ENTITY))
        groups.append([(entity, name) for name in chance.sample(known, wanted)])
    if chance.random() < 0.5:
        order = [fact for group in groups for fact in group]
    else:
        order = [fact for group in groups for fact in group]
        chance.shuffle(order)
    writer = _Writer(chance)
    while order:
        first = order.pop(0)
        writer.start_sentence()
        writer.state(kind, *first)
        if order and chance.random() < 0.5:
            same = order[0][0] is first[0]
            writer.join(", and " if same else chance.choice((", while ", ", whereas ", "; ")))
            writer.state(kind, *order.pop(0))
        writer.end_sentence()
    return Passage(writer.text, tuple(writer.statements))


class _Writer:
    """Puts a passage together and keeps account of where everything stands."""

    def __init__(self, chance: random.Random) -> None:
        self.text = ""
        self.statements: list[_Statement] = []
        self._chance = chance
        self._last_name: dict[str, tuple[int, int]] = {}
        self._topic: Entity | None = None
        self._capital_due = True

    def start_sentence(self) -> None:
        self.text += " " if self.text else ""
        self._capital_due = True

    def join(self, words: str) -> None:
        self.text += words

    def end_sentence(self) -> None:
        self.text += "."

    def state(self, kind: Kind, entity: Entity, relation: str) -> None:
        template = self._chance.choice(kind.relations[relation].statements)
        # A pronoun needs a known topic, and is no good in the middle of a clause.
        by_pronoun = (
            self._topic is entity
            and ("{es}" in template or template.startswith("{e}"))
            and self._chance.random() < 0.7
        )
        noun = self._chance.choice(kind.nouns)
        value = name = (0, 0)
        for piece in re.split(r"(\{\w+\})", template):
            if piece == "{v}":
                value = self._add(entity.facts[relation])
            elif piece in ("{e}", "{es}") and not by_pronoun:
                name = self._last_name[entity.name] = self._add(entity.name)
                if piece == "{es}":
                    self._add("'" if entity.name.endswith("s") else "'s")
            elif piece == "{e}":
                self._add(noun)
            elif piece == "{es}":
                self._add("its" if noun == "it" else f"{noun}'s")
            else:
                self._add(piece)
        if by_pronoun:
            name = self._last_name[entity.name]
        self._topic = entity
        self.statements.append(_Statement(entity, relation, value, name))

    def _add(self, piece: str) -> tuple[int, int]:
        if self._capital_due and piece:
            piece = piece[0].upper() + piece[1:]
            self._capital_due = False
        start = len(self.text)
        self.text += piece
        return start, len(self.text)


@dataclass(frozen=True)
class Question:
    """A question on a passage.

    Attributes:
        text: the question.
        answer: ``(start, end)`` in the passage's text, or ``None`` if it cannot be answered.
        asked: the values that would answer it, had the passage told them.
    """

    text: str
    answer: tuple[int, int] | None
    asked: str | None


def ask(
    passage: Passage, others: Sequence[Entity], count: int, chance: random.Random
) -> list[Question]:
    """At most ``count`` different questions on a passage.

    Args:
        passage: the passage.
        others: entities that an unanswerable question may be about.
        count: how many to ask; fewer if the passage does not have as many.
        chance: the source of randomness.
    """
    questions: dict[str, Question] = {}
    for _ in range(20 * count):
        if len(questions) == count:
            break
        draw = chance.random()
        if draw < UNANSWERABLE_SHARE:
            question = _unanswerable(passage, others, chance)
        elif draw < UNANSWERABLE_SHARE + REVERSE_SHARE:
            question = _reverse(passage, chance)
        else:
            question = _direct(passage, chance)
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def _direct(passage: Passage, chance: random.Random) -> Question:
    stated = chance.choice(passage.statements)
    templates = KINDS[stated.entity.kind].relations[stated.relation].questions
    return Question(
        _fill(chance.choice(templates), stated.entity.name),
        stated.value,
        stated.entity.facts[stated.relation],
    )


def _reverse(passage: Passage, chance: random.Random) -> Question | None:
    stated = chance.choice(passage.statements)
    templates = KINDS[stated.entity.kind].relations[stated.relation].reverse_questions
    value = stated.entity.facts[stated.relation]
    sharing = [e for e in passage.entities if e.facts.get(stated.relation) == value]
    if not templates or len(sharing) > 1:
        return None
    text = _fill(chance.choice(templates), value=value)
    return Question(text, stated.name, stated.entity.name)


def _unanswerable(
    passage: Passage, others: Sequence[Entity], chance: random.Random
) -> Question | None:
    stated = chance.choice(passage.statements)
    relation = KINDS[stated.entity.kind].relations[stated.relation]
    strangers = [e for e in others if e.kind == stated.entity.kind and not passage.tells(e.name)]
    if relation.reverse_questions and chance.random() < REVERSE_SHARE:
        stranger = chance.choice(strangers)
        value = stranger.facts.get(stated.relation)
        if value is None or passage.tells(value):
            return None
        text = _fill(chance.choice(relation.reverse_questions), value=value)
        return Question(text, None, stranger.name)
    told = {s.entity.name for s in passage.statements if s.relation == stated.relation}
    untold = [entity for entity in passage.entities if entity.name not in told]
    entity = chance.choice(untold if untold and chance.random() < 0.75 else strangers)
    value = entity.facts.get(stated.relation)
    # Who borders Spain is told where Spain is the neighbour of another.
    named = any(s.entity.facts[s.relation] == entity.name for s in passage.statements)
    if named or (value is not None and passage.tells(value)):
        return None
    return Question(_fill(chance.choice(relation.questions), entity.name), None, value)


def _fill(template: str, name: str = "", value: str = "") -> str:
    possessive = name + ("'" if name.endswith("s") else "'s")
    text = template.format(e=name, es=possessive, v=value)
    return text[0].upper() + text[1:]


def _answers(passage: Passage, question: Question) -> list[dict[str, Any]]:
    if question.answer is None:
        return []
    start, end = question.answer
    return [{"text": passage.text[start:end], "answer_start": start}]


def squad_records(
    passages: Iterable[Passage],
    entities: Sequence[Entity],
    questions_per_passage: int,
    chance: random.Random,
    prefix: str,
) -> dict[str, Any]:
    """A SQuAD v2.0 document: one article a passage; ids are ``prefix-passage-question``."""
    articles = []
    for number, passage in enumerate(passages):
        questions = [
            {
                "id": f"{prefix}-{number:04d}-{index}",
                "question": question.text,
                "is_impossible": question.answer is None,
                "answers": _answers(passage, question),
            }
            for index, question in enumerate(ask(passage, entities, questions_per_passage, chance))
        ]
        title = ", ".join(entity.name for entity in passage.entities)
        articles.append(
            {"title": title, "paragraphs": [{"context": passage.text, "qas": questions}]}
        )
    return {"version": "v2.0", "data": articles}


def write_squad_files(
    folder: Path, *, seed: int, train_passages: int, validation_passages: int, questions: int = 5
) -> tuple[Path, Path]:
    """Write ``train.json`` and ``validation.json`` (SQuAD v2.0) into ``folder``.

    Args:
        folder: is made if it is not there.
        seed: the same seed gives the same files, byte for byte.
        train_passages: the number of passages to train on.
        validation_passages: the number of passages to validate on.
        questions: the number of questions on each passage.

    Returns:
        The two paths.
    """
    train, validation = split_entities(seed)
    paths = []
    for name, entities, count in (
        ("train", train, train_passages),
        ("validation", validation, validation_passages),
    ):
        chance = random.Random(f"{name} {seed}")
        passages = write_passages(entities, count, chance)
        document = squad_records(passages, entities, questions, chance, name)
        path = folder / f"{name}.json"
        paths.append(write_text(path, json.dumps(document, ensure_ascii=False, indent=1)))
    return paths[0], paths[1]
