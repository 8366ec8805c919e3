"""The scores, against a second implementation written from the published definition."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import evaluate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_squad import plain_exact, plain_f1, plain_v1, plain_v2, plain_words

from hf_distill.tasks.question_answering import (
    QuestionAnswerer,
    load_metric,
    load_question_answering_dataset,
)
from hf_distill.tasks.question_answering import metrics as metrics_package
from hf_distill.tasks.question_answering.metrics import (
    best_threshold,
    exact_match,
    normalize,
    token_f1,
    token_f1_v2,
)

SHARED = Path(__file__).resolve().parents[4] / "shared"
SQUAD = SHARED / "data" / "squad"
needs_squad = pytest.mark.skipif(not SQUAD.is_dir(), reason="needs ../shared/data/squad")

# ---- words and pairs of words ------------------------------------------------------------------

ANSWERS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(
            [
                *("a", "an", "the", "The", "A.", "the-", "_a_", "a\u0301", "an\u200d", "the\u0307"),
                *("Größe", "GRÖSSE", "der", "„Süd“", "1,5", "km²", "ẞ", "İ", "ﬁ", "ａｎ"),
                *("x", "x", "-", "\u00a0"),
            ]
        ),
        max_size=6,
    ).map(" ".join),
)


@given(ANSWERS)
def test_normalisation(text: str) -> None:
    assert normalize(text).split() == plain_words(text)
    assert normalize(text) == " ".join(plain_words(text))


@given(ANSWERS, ANSWERS)
def test_exact_match_and_f1(prediction: str, gold: str) -> None:
    assert exact_match(prediction, gold) == plain_exact(prediction, gold)
    assert token_f1(prediction, gold) == pytest.approx(
        float(plain_f1(prediction, gold, both_empty=0)), abs=1e-12
    )
    assert token_f1_v2(prediction, gold) == pytest.approx(
        float(plain_f1(prediction, gold, both_empty=1)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Alps.", "alps"),
        ("U.S.A", "usa"),
        ("a.n. Meier", "meier"),
        ("theatre", "theatre"),
        ("der Bär", "der bär"),
        ("„Süd“", "„süd“"),
        ("Straße", "straße"),
        ("STRASSE", "strasse"),
        ("1,5 km²", "15 km²"),
        ("rock-and-roll", "rockandroll"),
        ("the", ""),
        ("– a –", "– –"),
    ],
)
def test_normalisation_by_hand(text: str, normal: str) -> None:
    assert normalize(text) == normal


def test_f1_by_hand() -> None:
    assert token_f1("the red car", "red red car") == pytest.approx(0.8)
    assert token_f1("der Rhein", "Rhein") == pytest.approx(2 / 3)
    assert token_f1("Rhein", "Donau") == 0.0
    # both normalise to nothing: v1.1 and v2.0 differ here
    assert (token_f1("the", "a"), token_f1_v2("the", "a")) == (0.0, 1.0)
    assert token_f1_v2("", "Rhein") == token_f1_v2("Rhein", "") == 0.0


# ---- whole data sets ---------------------------------------------------------------------------

GERMAN = [
    "Die Größe beträgt 1,5 km²",
    "der Ärzteverein „Süd“",
    "Straße des 17. Juni",
    "am 3. Oktober 1990",
    "an der Donau",
    "in dem Haus",
    "866 Millionen Euro",
    "ß",
    "die",
    "A. Müller-Lüdenscheidt",
]


def guess(row: dict[str, Any], dice: random.Random) -> str:
    """A gold answer, one with something amiss, a stretch of the context, or nothing."""
    golds, words, throw = row["answers"]["text"], row["context"].split(" "), dice.random()
    if golds and throw < 0.3:
        return dice.choice(golds)
    if golds and throw < 0.45:
        return f"The {golds[0].upper()}."
    if golds and throw < 0.6:
        return f"{golds[0]} {dice.choice(words)}"
    if throw < 0.7:
        return ""
    if throw < 0.75:
        return dice.choice(["the", "a", "An.", "...", "–"])
    start = dice.randrange(len(words))
    return " ".join(words[start : start + dice.randint(1, 6)])


def german_rows() -> list[dict[str, Any]]:
    return [
        {"id": f"de{i}", "context": " ".join(GERMAN), "answers": {"text": [t], "answer_start": [0]}}
        for i, t in enumerate(GERMAN)
    ]


def rows_of(name: str) -> list[dict[str, Any]]:
    rows = load_question_answering_dataset(SQUAD / f"{name}.json.gz")
    return [*rows.select_columns(["id", "context", "answers"]), *german_rows()]


def references(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["id"], "answers": row["answers"]} for row in rows]


@needs_squad
@pytest.mark.parametrize("name", ["train-v1.1", "validation-v1.1"])
def test_v1_on_all_of_squad(name: str) -> None:
    rows, dice = rows_of(name), random.Random(name)
    predictions = {row["id"]: guess(row, dice) for row in rows}
    scores = load_metric("squad").compute(
        predictions=[{"id": i, "prediction_text": text} for i, text in predictions.items()],
        references=references(rows),
    )
    wanted = plain_v1(predictions, {row["id"]: row["answers"]["text"] for row in rows})
    assert scores == pytest.approx(wanted, abs=1e-9)
    assert 30 < scores["exact_match"] < scores["f1"] < 90


@needs_squad
@pytest.mark.parametrize("name", ["train-v1.1", "validation-v1.1", "train-v2.0", "validation-v2.0"])
@pytest.mark.parametrize("ties", [False, True])
def test_v2_on_all_of_squad(name: str, ties: bool) -> None:
    rows, dice = rows_of(name), random.Random(name)
    dice.shuffle(rows)
    predictions = {row["id"]: guess(row, dice) for row in rows}
    # rises with "no answer", as a model's would, so that the best threshold lies inside
    sure = {row["id"]: dice.random() * (0.6 if row["answers"]["text"] else 1.0) for row in rows}
    probabilities = {i: round(p, 1) if ties else p for i, p in sure.items()}
    scores = load_metric("squad_v2").compute(
        predictions=[
            {"id": i, "prediction_text": text, "no_answer_probability": probabilities[i]}
            for i, text in predictions.items()
        ],
        references=references(sorted(rows, key=lambda row: row["id"])),
        no_answer_threshold=0.5,
    )
    golds = {row["id"]: row["answers"]["text"] for row in rows}
    assert scores == pytest.approx(plain_v2(predictions, golds, probabilities, 0.5), abs=1e-9)
    assert 0 < scores["best_f1_thresh"] < 1
    assert ("NoAns_f1" in scores) == ("v2" in name)


@needs_squad
@pytest.mark.skipif(
    not (SHARED / "models" / "minilm-l6-squad").is_dir(), reason="needs ../shared/models"
)
def test_v1_on_the_predictions_of_a_real_model() -> None:
    rows = load_question_answering_dataset(SQUAD / "validation-v1.1.json.gz")
    rows = rows.select(range(0, len(rows), 50))
    answerer = QuestionAnswerer.from_pretrained(SHARED / "models" / "minilm-l6-squad", device="cpu")
    answers = answerer(rows.to_list(), max_length=256, no_answer_threshold=None)
    predictions = {name: best.text for name, (best, *_) in zip(rows["id"], answers, strict=True)}
    scores = load_metric("squad").compute(
        predictions=[{"id": i, "prediction_text": text} for i, text in predictions.items()],
        references=references(list(rows)),
    )
    wanted = plain_v1(predictions, {row["id"]: row["answers"]["text"] for row in rows})
    assert scores == pytest.approx(wanted, abs=1e-9)
    assert scores["exact_match"] > 50 and scores["f1"] > 65  # 63.4 and 75.4 over all rows


def test_v2_without_probabilities_that_matter() -> None:
    scores = load_metric("squad_v2").compute(
        predictions=[
            {"id": "1", "prediction_text": "Rhein", "no_answer_probability": 0.0},
            {"id": "2", "prediction_text": "", "no_answer_probability": 0.0},
            {"id": "3", "prediction_text": "Elbe", "no_answer_probability": 0.0},
        ],
        references=[
            {"id": "1", "answers": {"text": ["der Rhein", "Rhein"], "answer_start": [0, 4]}},
            {"id": "2", "answers": {"text": [], "answer_start": []}},
            {"id": "3", "answers": {"text": [], "answer_start": []}},
        ],
    )
    assert scores == pytest.approx(
        {
            "exact": 200 / 3,
            "f1": 200 / 3,
            "total": 3,
            "HasAns_exact": 100.0,
            "HasAns_f1": 100.0,
            "HasAns_total": 1,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
            # "no answer" to 2 and 3, the answer to 1: the sweep may stop between equals
            "best_exact": 100.0,
            "best_exact_thresh": 0.0,
            "best_f1": 100.0,
            "best_f1_thresh": 0.0,
        }
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from(["", "x"]),
            st.booleans(),
            st.integers(-3, 3).map(float),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_best_threshold_by_trying_all(rows: list[tuple[float, str, bool, float]]) -> None:
    scores, texts, has, probabilities = zip(*rows, strict=True)
    order = sorted(range(len(rows)), key=lambda i: (probabilities[i], i))
    totals = []
    for answered in range(len(rows) + 1):
        inside = set(order[:answered])
        totals.append(
            sum(
                (scores[i] if has[i] else float(not texts[i])) if i in inside else float(not has[i])
                for i in range(len(rows))
            )
        )
    first_best = totals.index(max(totals))
    threshold = probabilities[order[first_best - 1]] if first_best else 0.0
    assert best_threshold(scores, texts, has, probabilities) == (
        pytest.approx(max(totals) / len(rows)),
        threshold,
    )


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_the_modules_also_load_by_path(name: str) -> None:
    extra = {"no_answer_probability": 0.0} if name == "squad_v2" else {}
    arguments = {
        "predictions": [{"id": "1", "prediction_text": "Wien", **extra}],
        "references": [{"id": "1", "answers": {"text": ["in Wien"], "answer_start": [0]}}],
    }
    folder = Path(metrics_package.__file__).parent / name
    metric = evaluate.load(str(folder))
    assert isinstance(metric, evaluate.Metric)
    scores = metric.compute(**arguments)
    assert scores == load_metric(name).compute(**arguments)
    assert scores["f1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_predictions_and_references_must_match(name: str) -> None:
    extra = {"no_answer_probability": 0.0} if name == "squad_v2" else {}

    def compute(predicted: list[str], wanted: list[str]) -> None:
        load_metric(name).compute(
            predictions=[{"id": i, "prediction_text": "x", **extra} for i in predicted],
            references=[{"id": i, "answers": {"text": ["x"], "answer_start": [0]}} for i in wanted],
        )

    with pytest.raises(ValueError, match="differ in 2 ids, for example 'b'"):
        compute(["a", "b"], ["a", "c"])
    with pytest.raises(ValueError, match="an id twice"):
        compute(["a", "a"], ["a", "b"])
    with pytest.raises(ValueError, match="an id twice"):
        compute(["a", "b"], ["a", "a"])


def test_v1_cannot_score_a_question_without_answer() -> None:
    with pytest.raises(ValueError, match="'q' has no answer.*use 'squad_v2'"):
        load_metric("squad").compute(
            predictions=[{"id": "q", "prediction_text": ""}],
            references=[{"id": "q", "answers": {"text": [], "answer_start": []}}],
        )


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="name='f1' .* squad, squad_v2"):
        load_metric("f1")


@pytest.mark.parametrize("name", ["squad", "squad_v2"])
def test_no_cache_folder_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose HOME cannot be written to."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", os.path.join(os.devnull, "cache"))
    extra = {"no_answer_probability": 0.0} if name == "squad_v2" else {}
    scores = load_metric(name).compute(
        predictions=[{"id": "1", "prediction_text": "the Alps", **extra}],
        references=[{"id": "1", "answers": {"text": ["Alps"], "answer_start": [3]}}],
    )
    assert scores["f1"] == 100.0
