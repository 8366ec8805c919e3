"""Against formulas written out here, on random predictions; nothing of scikit-learn."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, IOE1, IOE2

from hf_distill.tasks.metrics import (
    classification_metric,
    entity_scheme,
    multi_label_metric,
    perplexity_metric,
    regression_metric,
    rouge_metric,
    tagging_metric,
    token_scores,
    translation_metric,
)


def f1(predicted: list[bool], gold: list[bool]) -> float:
    hits = sum(p and g for p, g in zip(predicted, gold, strict=True))
    return 2 * hits / (sum(predicted) + sum(gold)) if sum(predicted) + sum(gold) else 0.0


def matthews(predicted: list[int], gold: list[int]) -> float:
    """Gorodkin 2004, equation 8."""
    n, right = len(gold), sum(p == g for p, g in zip(predicted, gold, strict=True))
    p, t = Counter(predicted), Counter(gold)
    top = right * n - sum(p[k] * t[k] for k in t)
    below = (n * n - sum(v * v for v in p.values())) * (n * n - sum(v * v for v in t.values()))
    return top / math.sqrt(below) if below else 0.0


@pytest.mark.parametrize("labels", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_classes(labels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    gold, predicted = (random.integers(labels, size=40).tolist() for _ in range(2))
    scores = classification_metric(predicted, gold, labels=labels, positive=0).scores()
    right = sum(p == g for p, g in zip(predicted, gold, strict=True))
    assert scores["accuracy"] == pytest.approx(100 * right / 40)
    each = [f1([p == k for p in predicted], [g == k for g in gold]) for k in range(labels)]
    assert scores["f1_macro"] == pytest.approx(100 * sum(each) / labels)
    assert scores["matthews"] == pytest.approx(100 * matthews(predicted, gold))
    if labels == 2:
        assert scores["f1"] == pytest.approx(100 * each[0])
        other = classification_metric(predicted, gold, labels=2, positive=1).scores()
        assert other["f1"] == pytest.approx(100 * each[1])
    else:
        assert "f1" not in scores


def test_classes_in_the_worst_case() -> None:
    assert classification_metric([1, 1], [0, 0], labels=2, positive=1).scores() == {
        "accuracy": 0.0, "f1_macro": 0.0, "matthews": 0.0, "f1": 0.0,
    }  # fmt: skip


def test_several_labels() -> None:
    random = np.random.default_rng(0)
    gold, predicted = (random.random((30, 4)) < 0.4 for _ in range(2))
    scores = multi_label_metric(predicted, gold).scores()
    flat = f1(predicted.flatten().tolist(), gold.flatten().tolist())
    each = [f1(predicted[:, k].tolist(), gold[:, k].tolist()) for k in range(4)]
    exact = [list(p) == list(g) for p, g in zip(predicted, gold, strict=True)]
    assert scores["f1_micro"] == pytest.approx(100 * flat)
    assert scores["f1_macro"] == pytest.approx(100 * sum(each) / 4)
    assert scores["exact_match"] == pytest.approx(100 * sum(exact) / 30)


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def ranks(x: list[float]) -> list[float]:
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def test_numbers() -> None:
    random = np.random.default_rng(1)
    gold = random.integers(5, size=25).astype(float).tolist()  # with ties
    predicted = (np.array(gold) + random.normal(size=25)).tolist()
    scores = regression_metric(predicted, gold).scores()
    assert scores["pearson"] == pytest.approx(100 * pearson(predicted, gold))
    assert scores["spearman"] == pytest.approx(100 * pearson(ranks(predicted), ranks(gold)))
    squares = [(p - g) ** 2 for p, g in zip(predicted, gold, strict=True)]
    assert scores["mse"] == pytest.approx(sum(squares) / 25)
    constant = regression_metric([1.0, 1.0], [0.0, 2.0]).scores()
    assert math.isnan(constant["pearson"]) and constant["mse"] == 1.0


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities of IOB2 tags; an I that continues nothing begins one, as in conlleval."""
    found, begin = set(), None
    for place, tag in enumerate([*tags, "O"]):
        kind = tag[2:]
        goes_on = tag.startswith("I") and begin is not None and tags[begin][2:] == kind
        if begin is not None and not goes_on:
            found.add((begin, place, tags[begin][2:]))
            begin = None
        if begin is None and tag != "O":
            begin = place
    return found


@pytest.mark.parametrize("seed", range(4))
def test_entities(seed: int) -> None:
    random = np.random.default_rng(seed)
    tags = ["O", "O", "O", "B-a", "I-a", "B-b", "I-b"]
    gold = [random.choice(tags, size=n).tolist() for n in (7, 12, 1, 20)]
    predicted = [
        [tag if random.random() < 0.6 else str(random.choice(tags)) for tag in row] for row in gold
    ]
    right = found = there = same = words = 0
    for some, others in zip(predicted, gold, strict=True):
        right += len(entities(some) & entities(others))
        found, there = found + len(entities(some)), there + len(entities(others))
        same += sum(p == g for p, g in zip(some, others, strict=True))
        words += len(others)
    scores = tagging_metric(predicted, gold).scores()
    assert right
    assert scores["precision"] == pytest.approx(100 * right / found)
    assert scores["recall"] == pytest.approx(100 * right / there)
    assert scores["f1"] == pytest.approx(100 * 2 * right / (found + there))
    assert scores["accuracy"] == pytest.approx(100 * same / words)


def test_tags_that_are_no_entities() -> None:
    scores = tagging_metric([["N", "V"], ["N"]], [["N", "V"], ["V"]]).scores()
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["f1_macro"] == pytest.approx(200 / 3)
    assert "precision" not in scores


# By scheme: the letters of an entity of n words; seqeval's class for its strict mode.
LETTERS: dict[str, tuple[Callable[[int], str], type]] = {
    "IOB2": (lambda n: "B" + "I" * (n - 1), IOB2),
    "IOE2": (lambda n: "I" * (n - 1) + "E", IOE2),
    "IOBES": (lambda n: "S" if n == 1 else "B" + "I" * (n - 2) + "E", IOBES),
    "BILOU": (lambda n: "U" if n == 1 else "B" + "I" * (n - 2) + "L", BILOU),
    "BMEWO": (lambda n: "W" if n == 1 else "B" + "M" * (n - 2) + "E", IOBES),
    "BMES": (lambda n: "S" if n == 1 else "B" + "M" * (n - 2) + "E", IOBES),
    "IOB1": (lambda n: "I" * n, IOB1),
    "IOE1": (lambda n: "I" * n, IOE1),
}
Sentence = list[tuple[str, int]]


def as_tags(sentence: Sentence, scheme: str) -> list[str]:
    tags: list[str] = []
    for kind, length in sentence:
        if kind == "O":
            tags += ["O"] * length
            continue
        touches = bool(tags) and tags[-1].endswith(f"-{kind}")
        if scheme == "IOE1" and touches:
            tags[-1] = f"E-{kind}"
        letters = LETTERS[scheme][0](length)
        if scheme == "IOB1" and touches:
            letters = "B" + letters[1:]
        tags += [f"{letter}-{kind}" for letter in letters]
    return tags


def spans(sentence: Sentence) -> set[tuple[int, int, str]]:
    found, place = set(), 0
    for kind, length in sentence:
        if kind != "O":
            found.add((place, place + length, kind))
        place += length
    return found


@st.composite
def two_readings(draw: st.DrawFn) -> tuple[list[Sentence], list[Sentence]]:
    """Gold and predicted entities of the same sentences, some of them shared."""
    piece = st.tuples(st.sampled_from(["O", "a", "b-c"]), st.integers(1, 4))
    gold = draw(st.lists(st.lists(piece, min_size=1, max_size=6), min_size=1, max_size=4))
    predicted = []
    for sentence in gold:
        row: Sentence = []
        for kind, length in sentence:
            if draw(st.booleans()):
                row.append((kind, length))
            else:
                row += [(draw(st.sampled_from(["O", "a", "b-c"])), 1) for _ in range(length)]
        predicted.append(row)
    return predicted, gold


@pytest.mark.parametrize("scheme", LETTERS)
@given(rows=two_readings())
@settings(max_examples=30, deadline=None)
def test_entities_of_every_scheme(scheme: str, rows: tuple[list[Sentence], list[Sentence]]) -> None:
    """Against the spans that were written, and seqeval's strict mode of that scheme."""
    predicted, gold = rows
    # all letters occur, so that the scheme is certain
    whole: Sentence = [("a", 1), ("a", 2), ("a", 3), ("O", 1), ("a", 3), ("a", 1)]
    predicted, gold = [[*predicted[0]], *predicted[1:], whole], [*gold, whole]
    right = sum(len(spans(p) & spans(g)) for p, g in zip(predicted, gold, strict=True))
    found, there = (sum(len(spans(row)) for row in rows) for rows in (predicted, gold))
    tagged = [[as_tags(row, scheme) for row in rows] for rows in (predicted, gold)]
    scores = tagging_metric(*tagged).scores()
    assert scores["precision"] == pytest.approx(100 * right / found)
    assert scores["recall"] == pytest.approx(100 * right / there)
    assert scores["f1"] == pytest.approx(100 * 2 * right / (found + there))
    if scheme != "IOE1":  # seqeval's own strict IOE1 loses entities, as its source says
        letters = {"M": "I", "W": "S"} if scheme.startswith("BM") else {}
        strict = [
            [[letters.get(tag[0], tag[0]) + tag[1:] for tag in row] for row in rows]
            for rows in reversed(tagged)
        ]
        f1 = seqeval_f1(*strict, mode="strict", scheme=LETTERS[scheme][1])
        assert scores["f1"] == pytest.approx(100 * f1)


def test_touching_entities_of_bilou() -> None:
    for predicted, gold in (
        (["U-PER", "O", "O"], ["U-PER", "U-PER", "O"]),
        (["B-PER", "L-PER", "O", "O"], ["B-PER", "L-PER", "U-PER", "O"]),
    ):
        scores = tagging_metric([predicted], [gold]).scores()
        assert (scores["precision"], scores["recall"]) == (100, 50)
        assert scores["f1"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("gold", "known", "scheme"),
    [
        ({"O", "B-a", "I-a"}, (), "IOB"),
        ({"O", "I-a"}, ("I-a", "E-a", "O"), "IOE"),
        ({"O", "B-a", "I-a"}, ("B-a", "I-a", "L-a", "U-a"), "BILOU"),
        ({"O", "S-a"}, (), "IOBES"),
        ({"B-a", "M-a", "E-a", "S-a"}, (), "BMES"),
        ({"B-a", "W-a"}, ("noun",), "BMEWO"),
        ({"B-a", "U-a"}, ("S-a",), "BILOU"),  # the model's does not fit: the data decide
        ({"O"}, (), "IOB"),
        ({"B-a", "U-a", "S-a"}, (), None),
        ({"B-a", "noun"}, (), None),
        ({"X-a", "O"}, (), None),
    ],
)
def test_the_scheme_of_tags(gold: set[str], known: tuple[str, ...], scheme: str | None) -> None:
    assert entity_scheme(gold, known) == scheme


def test_a_tag_outside_the_scheme_is_no_entity() -> None:
    scores = tagging_metric([["B-a", "noun", "S-a"]], [["B-a", "O", "U-a"]]).scores()
    assert (scores["precision"], scores["recall"]) == (100, 50)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perplexity_counts_each_token_once(shifted: bool, dtype: torch.dtype) -> None:
    """Batches of unequal size and length against one float64 sum over all tokens."""
    torch.manual_seed(0)
    total, count, right = 0.0, 0, 0
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows, length in ((3, 9), (1, 4), (2, 12)):
        logits = (4 * torch.randn(rows, length, 11)).to(dtype)
        labels = torch.randint(11, (rows, length))
        labels[0, length // 2 :] = -100
        losses, top = token_scores((logits, "other outputs"), labels, shifted=shifted)
        gold = labels[:, 1:] if shifted else labels
        assert losses.shape == top.shape == gold.shape and losses.dtype == torch.float32
        wide = [torch.full((rows, 12), -100.0) for _ in range(3)]
        for target, source in zip(wide, (losses, top, gold), strict=True):
            target[:, : source.shape[1]] = source.float()
        kept.append(tuple(tensor.numpy() for tensor in wide))  # type: ignore[arg-type]
        for row in range(rows):
            for place in range(length - shifted):
                target_id = int(labels[row, place + shifted])
                if target_id != -100:
                    wanted = torch.log_softmax(logits[row, place].double(), dim=-1)
                    total -= float(wanted[target_id])
                    right += int(wanted.argmax()) == target_id
                    count += 1
    scores = perplexity_metric(*(np.concatenate(part) for part in zip(*kept, strict=True))).scores()
    assert scores["loss_per_token"] == pytest.approx(total / count, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(100 * right / count)


def test_perplexity_without_tokens_and_beyond_all_numbers() -> None:
    nothing = perplexity_metric(np.zeros((1, 2)), np.zeros((1, 2)), np.full((1, 2), -100)).scores()
    assert math.isnan(nothing["perplexity"])
    huge = perplexity_metric(np.array([[1e4]]), np.array([[1]]), np.array([[1]])).scores()
    assert huge["perplexity"] == math.inf and huge["accuracy"] == 100


def test_rouge_by_hand() -> None:
    # 3 of 4 and of 3 words; 1 of 3 and of 2 pairs; the longest common subsequence has 3 words.
    scores = rouge_metric(["the old cat sat"], ["the cat sat"]).scores()
    assert scores["rouge1"] == pytest.approx(100 * 2 * 3 / 7)
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / 5)
    assert scores["rougeL"] == pytest.approx(100 * 2 * 3 / 7)
    both = rouge_metric(["the old cat sat", ""], ["the cat sat", "dog"]).scores()
    assert both["rouge1"] == pytest.approx(scores["rouge1"] / 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("किताब", "कताब"),  # Devanagari: book, and without its vowel sign
        ("கா", "கி"),
        ("ดี", "ดู"),
        ("für", "fär"),
        ("naïve", "nave"),
    ],
)
def test_words_that_differ_in_a_mark_or_letter_differ(one: str, other: str) -> None:
    for scale in ("", " and some English words around"):
        assert rouge_metric([one + scale], [one + scale]).scores()["rouge1"] == pytest.approx(100)
    assert rouge_metric([one], [other]).scores()["rouge1"] == 0.0


def test_rouge_takes_composed_and_decomposed_letters_for_the_same() -> None:
    one, other = (unicodedata.normalize(form, "été à Zürich") for form in ("NFC", "NFD"))
    assert one != other
    assert rouge_metric([one], [other]).scores()["rouge2"] == pytest.approx(100)


def test_rouge_of_scripts_without_spaces_counts_letters() -> None:
    # ภา ษา ดี: letters with their marks are ภ า ษ า ดี, against ภ า ษ า ดู: 4 of 5
    assert rouge_metric(["ภาษาดี"], ["ภาษาดู"]).scores()["rouge1"] == pytest.approx(80)
    # 日 本 の 2023 年: digits stay a number, wherever they stand
    assert rouge_metric(["日本の2023年"], ["日本の2024年"]).scores()["rouge1"] == pytest.approx(80)


@given(st.lists(st.text(st.characters(max_codepoint=127)), min_size=2, max_size=2))
def test_rouge_of_english_is_that_of_the_library(texts: list[str]) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    ours = rouge_metric(texts[:1], texts[1:]).scores()
    for name, score in scorer.score(texts[1], texts[0]).items():
        assert ours[name] == pytest.approx(100 * score.fmeasure)


def test_rouge_of_other_scripts() -> None:
    assert rouge_metric(["кот спит"], ["кот ест"]).scores()["rouge1"] == pytest.approx(50)
    assert rouge_metric(["猫在睡"], ["猫在吃"]).scores()["rouge1"] == pytest.approx(100 * 2 / 3)
    assert rouge_metric(["кот"], ["кот"]).scores()["rougeL"] == pytest.approx(100)


def test_bleu_by_hand() -> None:
    written, gold = "the cat sat on the mat today", "the cat sat on the mat"
    precisions = [6 / 7, 5 / 6, 4 / 5, 3 / 4]
    bleu = math.exp(sum(map(math.log, precisions)) / 4)
    scores = translation_metric([written], [gold]).scores()
    assert scores["bleu"] == pytest.approx(100 * bleu)
    assert 0 < scores["chrf"] < 100
    same = translation_metric([gold], [gold]).scores()
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100)
