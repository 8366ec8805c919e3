"""Questions and answers about real facts, generated as SQuAD v2.0 files.

A passage speaks of several countries or several chemical elements, so that every answer has
distractors of its own type. A question asks for a value (*What is the capital of Austria?*), for
the entity (*Which country has Vienna as its capital?*), or for something that the passage does not
tell. No entity of the training file occurs in the validation file. The facts and their wordings are
data, next to this module.
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

from hf_distill.files import write_text

VALIDATION_SHARE = 0.35
UNANSWERABLE_SHARE = 0.3
REVERSE_SHARE = 0.2
ENTITIES_PER_PASSAGE = (2, 3)
FACTS_PER_ENTITY = (2, 2)


@dataclass(frozen=True)
class Relation:
    """Wordings of a property; ``{e}`` is the entity, ``{es}`` its possessive, ``{v}`` the value.

    Attributes:
        statements: clauses that state the fact, without capital and full stop.
        questions: questions that the value answers.
        reverse_questions: questions that name the value and that the entity answers.
    """

    statements: Sequence[str]
    questions: Sequence[str]
    reverse_questions: Sequence[str] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of entity: nouns that may stand for its name, and its properties by name."""

    nouns: Sequence[str]
    relations: dict[str, Relation]


def _read(name: str) -> Any:
    text = resources.files("hf_distill.demo").joinpath(f"data/{name}.json").read_text("utf-8")
    return json.loads(text)


KINDS = {
    name: Kind(kind["nouns"], {key: Relation(**one) for key, one in kind["relations"].items()})
    for name, kind in _read("wording").items()
}


@dataclass(frozen=True)
class Entity:
    """A country or element.

    Attributes:
        kind: a key of ``KINDS``.
        name: as it stands in the middle of a sentence, with its article.
        facts: the values by relation.
    """

    kind: str
    name: str
    facts: dict[str, str]

    @property
    def possessive(self) -> str:
        return self.name + ("'" if self.name.endswith("s") else "'s")


@dataclass(frozen=True)
class _Statement:
    """A fact as a passage states it, with the places ``(start, end)`` of value and name."""

    entity: Entity
    relation: str
    value: tuple[int, int]
    name: tuple[int, int]

    @property
    def wording(self) -> Relation:
        return KINDS[self.entity.kind].relations[self.relation]

    @property
    def told(self) -> str:
        return self.entity.facts[self.relation]


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
        """Find ``value`` as whole words anywhere in the text, whatever is said of it."""
        pattern = rf"(?<!\w){re.escape(value.removeprefix('the '))}(?!\w)"
        return re.search(pattern, self.text, re.IGNORECASE) is not None


def load_entities(kind: str) -> list[Entity]:
    """Load the entities of a kind, in the order of its file."""
    return [Entity(kind, record.pop("name"), record) for record in _read(kind)]


def split_entities() -> tuple[list[Entity], list[Entity]]:
    """Split all entities into those of training and those of validation, always in the same way.

    The teacher's adapter was trained on the former, and must not have seen what is validated.
    """
    chance = random.Random("entities 0")
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
    """Write ``count`` passages, each about several entities of one kind."""
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
    order = [fact for group in groups for fact in group]
    if chance.random() >= 0.5:
        chance.shuffle(order)
    writer = _Writer(chance)
    while order:
        first = order.pop(0)
        writer.state(kind, *first)
        if order and chance.random() < 0.5:
            same = order[0][0] is first[0]
            joint = ", and " if same else chance.choice((", while ", ", whereas ", "; "))
            writer.state(kind, *order.pop(0), joint)
        writer.text += "."
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

    def state(self, kind: Kind, entity: Entity, relation: str, joint: str | None = None) -> None:
        """State a fact in a sentence of its own, or joined to the one before."""
        self.text += (" " if self.text else "") if joint is None else joint
        self._capital_due = joint is None
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
                    self._add(entity.possessive.removeprefix(entity.name))
            elif piece == "{es}":
                self._add("its" if noun == "it" else f"{noun}'s")
            else:
                self._add(noun if piece == "{e}" else piece)
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
    """A question on a passage, and where its answer stands, if it has one."""

    text: str
    answer: tuple[int, int] | None


def ask(
    passage: Passage, others: Sequence[Entity], count: int, chance: random.Random
) -> list[Question]:
    """Ask at most ``count`` different questions; unanswerable ones may be about ``others``."""
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
            stated = chance.choice(passage.statements)
            text = _fill(chance.choice(stated.wording.questions), stated.entity)
            question = Question(text, stated.value)
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())


def _reverse(passage: Passage, chance: random.Random) -> Question | None:
    stated = chance.choice(passage.statements)
    templates = stated.wording.reverse_questions
    sharing = [e for e in passage.entities if e.facts.get(stated.relation) == stated.told]
    if not templates or len(sharing) > 1:
        return None
    return Question(_fill(chance.choice(templates), value=stated.told), stated.name)


def _unanswerable(
    passage: Passage, others: Sequence[Entity], chance: random.Random
) -> Question | None:
    stated = chance.choice(passage.statements)
    strangers = [e for e in others if e.kind == stated.entity.kind and not passage.tells(e.name)]
    if stated.wording.reverse_questions and chance.random() < REVERSE_SHARE:
        value = chance.choice(strangers).facts.get(stated.relation)
        if value is None or passage.tells(value):
            return None
        return Question(_fill(chance.choice(stated.wording.reverse_questions), value=value), None)
    told = {s.entity.name for s in passage.statements if s.relation == stated.relation}
    untold = [entity for entity in passage.entities if entity.name not in told]
    entity = chance.choice(untold if untold and chance.random() < 0.75 else strangers)
    value = entity.facts.get(stated.relation)
    # Who borders Spain is told where Spain is the neighbour of another.
    named = any(s.told == entity.name for s in passage.statements)
    if named or (value is not None and passage.tells(value)):
        return None
    return Question(_fill(chance.choice(stated.wording.questions), entity), None)


def _fill(template: str, entity: Entity | None = None, value: str = "") -> str:
    names = {"e": entity.name, "es": entity.possessive} if entity else {}
    text = template.format(**names, v=value)
    return text[0].upper() + text[1:]


def squad_records(
    passages: Iterable[Passage],
    entities: Sequence[Entity],
    questions_per_passage: int,
    chance: random.Random,
    prefix: str,
) -> dict[str, Any]:
    """Make a SQuAD v2.0 document, an article per passage; ids are ``prefix-passage-question``."""
    articles = []
    for number, passage in enumerate(passages):
        questions = []
        asked = ask(passage, entities, questions_per_passage, chance)
        for index, question in enumerate(asked):
            answers = []
            if question.answer is not None:
                start, end = question.answer
                answers.append({"text": passage.text[start:end], "answer_start": start})
            questions.append(
                {
                    "id": f"{prefix}-{number:04d}-{index}",
                    "question": question.text,
                    "is_impossible": not answers,
                    "answers": answers,
                }
            )
        title = ", ".join(entity.name for entity in passage.entities)
        articles.append(
            {"title": title, "paragraphs": [{"context": passage.text, "qas": questions}]}
        )
    return {"version": "v2.0", "data": articles}


def write_squad_files(
    folder: Path,
    *,
    seed: int | str,
    train_passages: int,
    validation_passages: int,
    questions: int = 5,
) -> tuple[Path, Path]:
    """Write ``train.json`` and ``validation.json`` (SQuAD v2.0), the same bytes for a seed.

    Returns:
        The two paths.
    """
    train, validation = split_entities()

    def write(name: str, entities: Sequence[Entity], count: int) -> Path:
        chance = random.Random(f"{name} {seed}")
        passages = write_passages(entities, count, chance)
        document = squad_records(passages, entities, questions, chance, name)
        return write_text(
            folder / f"{name}.json", json.dumps(document, ensure_ascii=False, indent=1)
        )

    return (
        write("train", train, train_passages),
        write("validation", validation, validation_passages),
    )
