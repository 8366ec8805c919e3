"""How the demo's passages and questions put a fact into words.

In a template ``{e}`` is the entity, ``{es}`` its possessive form and ``{v}`` the value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """The wordings of one property of a kind of entity.

    Attributes:
        statements: clauses that state the fact, without capital and full stop.
        questions: questions that the value answers.
        reverse_questions: questions that name the value and that the entity answers.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    reverse_questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One kind of entity: what to call it, and its properties by their name in the data.

    Attributes:
        nouns: what may stand for the name of an entity that was just spoken of.
        relations: the properties, by their key in the data file.
    """

    nouns: tuple[str, ...]
    relations: dict[str, Relation]


COUNTRIES = Kind(
    nouns=("it", "the country", "this state"),
    relations={
        "capital": Relation(
            statements=(
                "{es} capital is {v}",
                "{e} is governed from {v}",
                "{v} is the seat of {es} government",
                "the ministries of {e} are found in {v}",
                "{e} has made {v} its capital",
                "the head of state of {e} resides in {v}",
            ),
            questions=(
                "What is the capital of {e}?",
                "From which city is {e} governed?",
                "Where does the government of {e} sit?",
                "Which city did {e} make its capital?",
                "In which town would you look for the ministries of {e}?",
                "What is {es} seat of government?",
            ),
            reverse_questions=(
                "Which country has {v} as its capital?",
                "{v} is the capital of which country?",
                "Which state is governed from {v}?",
            ),
        ),
        "city": Relation(
            statements=(
                "{v} is one of {es} big cities",
                "besides the capital, {v} is a major city of {e}",
                "{e} is home to the city of {v}",
                "many people of {e} live in the city of {v}",
            ),
            questions=(
                "Which big city of {e} is not the capital?",
                "Name a large city in {e} besides the capital.",
                "What other major city does {e} have besides its capital?",
                "Apart from the capital, which city of {e} is mentioned?",
            ),
            reverse_questions=(
                "In which country is the city of {v}?",
                "To which state does the city of {v} belong?",
            ),
        ),
        "continent": Relation(
            statements=(
                "{e} lies in {v}",
                "{e} is part of {v}",
                "{es} place on the map is in {v}",
                "atlases list {e} under {v}",
            ),
            questions=(
                "On which continent is {e}?",
                "Where in the world is {e}?",
                "Which continent does {e} belong to?",
                "Under which continent do atlases list {e}?",
            ),
        ),
        "population": Relation(
            statements=(
                "{e} has a population of {v}",
                "about {v} people live in {e}",
                "{es} inhabitants number {v}",
                "{e} is home to roughly {v} people",
                "the last count in {e} found {v} residents",
            ),
            questions=(
                "How many people live in {e}?",
                "What is the population of {e}?",
                "How many inhabitants does {e} have?",
                "How large is {es} population?",
                "How many residents were counted in {e}?",
            ),
            reverse_questions=(
                "Which country has {v} inhabitants?",
                "Where do {v} people live?",
            ),
        ),
        "area": Relation(
            statements=(
                "{e} covers {v} square kilometres",
                "{es} territory measures {v} square kilometres",
                "{e} stretches over {v} square kilometres",
                "surveyors give {es} size as {v} square kilometres",
            ),
            questions=(
                "How many square kilometres does {e} cover?",
                "What is the area of {e}?",
                "How big is {es} territory?",
                "What size is {e}?",
            ),
            reverse_questions=(
                "Which country covers {v} square kilometres?",
                "Whose territory measures {v} square kilometres?",
            ),
        ),
        "currency": Relation(
            statements=(
                "{es} currency is the {v}",
                "{e} pays its bills in the {v}",
                "shops in {e} take the {v}",
                "the central bank of {e} issues the {v}",
                "the {v} is legal tender in {e}",
            ),
            questions=(
                "What is the currency of {e}?",
                "Which money is used in {e}?",
                "What do people in {e} pay with?",
                "Which currency does the central bank of {e} issue?",
                "What is legal tender in {e}?",
            ),
        ),
        "language": Relation(
            statements=(
                "{v} is an official language of {e}",
                "{e} has {v} as an official language",
                "the laws of {e} are written in {v}",
                "officials in {e} use {v}",
            ),
            questions=(
                "What is an official language of {e}?",
                "Which language is used by officials in {e}?",
                "In what language are the laws of {e} written?",
                "What language does {e} speak officially?",
            ),
        ),
        "phone_code": Relation(
            statements=(
                "{es} dialling code is {v}",
                "calls to {e} begin with {v}",
                "to ring someone in {e}, one first dials {v}",
                "telephone numbers of {e} carry the prefix {v}",
            ),
            questions=(
                "What is the dialling code of {e}?",
                "With what do calls to {e} begin?",
                "Which prefix do you dial to ring someone in {e}?",
                "What is {es} telephone prefix?",
            ),
            reverse_questions=(
                "Which country is called with the prefix {v}?",
                "Whose dialling code is {v}?",
            ),
        ),
        "internet_domain": Relation(
            statements=(
                "{es} internet domain is {v}",
                "web addresses of {e} end in {v}",
                "{e} was given the domain {v}",
            ),
            questions=(
                "What is the internet domain of {e}?",
                "In what do web addresses of {e} end?",
                "Which domain was given to {e}?",
            ),
            reverse_questions=(
                "Which country has the internet domain {v}?",
                "Whose web addresses end in {v}?",
            ),
        ),
        "neighbour": Relation(
            statements=(
                "{es} only land border is with {v}",
                "by land {e} touches no state but {v}",
                "{e} has {v} as its sole neighbour on land",
            ),
            questions=(
                "Which country borders {e}?",
                "What is {es} only neighbour on land?",
                "With which state does {e} share a border?",
            ),
        ),
    },
)

ELEMENTS = Kind(
    nouns=("it", "the element", "this element"),
    relations={
        "symbol": Relation(
            statements=(
                "{es} chemical symbol is {v}",
                "chemists abbreviate {e} as {v}",
                "{v} stands for {e} in formulas",
                "{e} is written {v} for short",
            ),
            questions=(
                "What is the chemical symbol of {e}?",
                "How do chemists abbreviate {e}?",
                "What stands for {e} in formulas?",
                "How is {e} written for short?",
            ),
            reverse_questions=(
                "Which element has the symbol {v}?",
                "What does {v} stand for?",
            ),
        ),
        "atomic_number": Relation(
            statements=(
                "{es} atomic number is {v}",
                "{e} stands at place {v} of the periodic table",
                "every atom of {e} has {v} protons",
                "the nucleus of {e} holds {v} protons",
            ),
            questions=(
                "What is the atomic number of {e}?",
                "How many protons does an atom of {e} have?",
                "At which place of the periodic table does {e} stand?",
                "How many protons are in the nucleus of {e}?",
            ),
            reverse_questions=(
                "Which element has {v} protons?",
                "What is the element with atomic number {v}?",
            ),
        ),
        "family": Relation(
            statements=(
                "{e} belongs to the {v}",
                "{e} is counted among the {v}",
                "chemists class {e} with the {v}",
                "textbooks treat {e} in the chapter on {v}",
            ),
            questions=(
                "To which family does {e} belong?",
                "What kind of element is {e}?",
                "With which group do chemists class {e}?",
                "In which chapter do textbooks treat {e}?",
            ),
        ),
        "discoverer": Relation(
            statements=(
                "{e} was discovered by {v}",
                "the discovery of {e} is credited to {v}",
                "{v} was the first to find {e}",
                "{es} discoverer was {v}",
                "science owes {e} to the work of {v}",
            ),
            questions=(
                "Who discovered {e}?",
                "To whom is the discovery of {e} credited?",
                "Who was the first to find {e}?",
                "To whose work does science owe {e}?",
                "Which scientist found {e}?",
            ),
            reverse_questions=(
                "Which element did {v} discover?",
                "What was found by {v}?",
                "What is {v} credited with?",
            ),
        ),
        "discovery_year": Relation(
            statements=(
                "{e} was discovered in {v}",
                "the discovery of {e} dates from {v}",
                "{e} has been known since {v}",
                "{v} was the year in which {e} was found",
            ),
            questions=(
                "When was {e} discovered?",
                "In which year was {e} found?",
                "From when does the discovery of {e} date?",
                "Since when has {e} been known?",
            ),
            reverse_questions=(
                "Which element was discovered in {v}?",
                "What was found in the year {v}?",
            ),
        ),
        "discovery_place": Relation(
            statements=(
                "the discovery of {e} was made in {v}",
                "{e} was first found in {v}",
                "{v} is where {e} was discovered",
                "scientists in {v} identified {e}",
            ),
            questions=(
                "Where was {e} discovered?",
                "In which country was {e} first found?",
                "What was the place of the discovery of {e}?",
                "Where did scientists identify {e}?",
            ),
        ),
        "named_after": Relation(
            statements=(
                "{e} is named after {v}",
                "{es} name honours {v}",
                "{v} gave {e} its name",
            ),
            questions=(
                "What is {e} named after?",
                "What does the name of {e} honour?",
                "What gave {e} its name?",
            ),
        ),
        "name_meaning": Relation(
            statements=(
                "the name of {e} comes from a word that means {v}",
                "{es} name once meant {v}",
                "{e} takes its name from an old word for {v}",
            ),
            questions=(
                "What did the name of {e} once mean?",
                "What is the meaning behind the name of {e}?",
                "From an old word for what does {e} take its name?",
            ),
        ),
        "melting_point": Relation(
            statements=(
                "{e} melts at {v} degrees Celsius",
                "{es} melting point is {v} degrees Celsius",
                "at {v} degrees Celsius {e} turns liquid",
                "{e} stays solid up to {v} degrees Celsius",
            ),
            questions=(
                "At what temperature does {e} melt?",
                "What is the melting point of {e}?",
                "When does {e} turn liquid?",
                "Up to how many degrees Celsius does {e} stay solid?",
            ),
            reverse_questions=(
                "Which element melts at {v} degrees Celsius?",
                "What turns liquid at {v} degrees Celsius?",
            ),
        ),
        "top_producer": Relation(
            statements=(
                "most of the world's {e} comes from {v}",
                "{v} is the leading producer of {e}",
                "no country mines more {e} than {v}",
            ),
            questions=(
                "Where does most of the world's {e} come from?",
                "Which country is the leading producer of {e}?",
                "Who mines more {e} than any other country?",
            ),
        ),
    },
)

KINDS = {"countries": COUNTRIES, "elements": ELEMENTS}
