"""Against formulas written out here, on random predictions; nothing of scikit-learn or seqeval."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from hf_distill.tasks.metrics import (
    classification_scores,
    multi_label_scores,
    perplexity_scores,
    regression_scores,
    rouge_scores,
    tagging_scores,
    token_scores,
    translation_scores,
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
    scores = classification_scores(predicted, gold, labels=labels, positive=0)
    right = sum(p == g for p, g in zip(predicted, gold, strict=True))
    assert scores["accuracy"] == pytest.approx(100 * right / 40)
    each = [f1([p == k for p in predicted], [g == k for g in gold]) for k in range(labels)]
    assert scores["f1_macro"] == pytest.approx(100 * sum(each) / labels)
    assert scores["matthews"] == pytest.approx(100 * matthews(predicted, gold))
    if labels == 2:
        assert scores["f1"] == pytest.approx(100 * each[0])
        other = classification_scores(predicted, gold, labels=2, positive=1)
        assert other["f1"] == pytest.approx(100 * each[1])
    else:
        assert "f1" not in scores


def test_classes_in_the_worst_case() -> None:
    assert classification_scores([1, 1], [0, 0], labels=2, positive=1) == {
        "accuracy": 0.0, "f1_macro": 0.0, "matthews": 0.0, "f1": 0.0,
    }  # fmt: skip


def test_several_labels() -> None:
    random = np.random.default_rng(0)
    gold, predicted = (random.random((30, 4)) < 0.4 for _ in range(2))
    scores = multi_label_scores(predicted, gold)
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
    scores = regression_scores(predicted, gold)
    assert scores["pearson"] == pytest.approx(100 * pearson(predicted, gold))
    assert scores["spearman"] == pytest.approx(100 * pearson(ranks(predicted), ranks(gold)))
    squares = [(p - g) ** 2 for p, g in zip(predicted, gold, strict=True)]
    assert scores["mse"] == pytest.approx(sum(squares) / 25)
    constant = regression_scores([1.0, 1.0], [0.0, 2.0])
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
    scores = tagging_scores(predicted, gold)
    assert right
    assert scores["precision"] == pytest.approx(100 * right / found)
    assert scores["recall"] == pytest.approx(100 * right / there)
    assert scores["f1"] == pytest.approx(100 * 2 * right / (found + there))
    assert scores["accuracy"] == pytest.approx(100 * same / words)


def test_tags_that_are_no_entities() -> None:
    scores = tagging_scores([["N", "V"], ["N"]], [["N", "V"], ["V"]])
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["f1_macro"] == pytest.approx(200 / 3)
    assert "precision" not in scores


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
    scores = perplexity_scores(*(np.concatenate(part) for part in zip(*kept, strict=True)))
    assert scores["loss_per_token"] == pytest.approx(total / count, rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(100 * right / count)


def test_perplexity_without_tokens_and_beyond_all_numbers() -> None:
    nothing = perplexity_scores(np.zeros((1, 2)), np.zeros((1, 2)), np.full((1, 2), -100))
    assert math.isnan(nothing["perplexity"])
    huge = perplexity_scores(np.array([[1e4]]), np.array([[1]]), np.array([[1]]))
    assert huge["perplexity"] == math.inf and huge["accuracy"] == 100


def test_rouge_by_hand() -> None:
    # 3 of 4 and of 3 words; 1 of 3 and of 2 pairs; the longest common subsequence has 3 words.
    scores = rouge_scores(["the old cat sat"], ["the cat sat"])
    assert scores["rouge1"] == pytest.approx(100 * 2 * 3 / 7)
    assert scores["rouge2"] == pytest.approx(100 * 2 * 1 / 5)
    assert scores["rougeL"] == pytest.approx(100 * 2 * 3 / 7)
    both = rouge_scores(["the old cat sat", ""], ["the cat sat", "dog"])
    assert both["rouge1"] == pytest.approx(scores["rouge1"] / 2)


def test_rouge_of_other_scripts() -> None:
    assert rouge_scores(["кот спит"], ["кот ест"])["rouge1"] == pytest.approx(50)
    assert rouge_scores(["猫在睡"], ["猫在吃"])["rouge1"] == pytest.approx(100 * 2 / 3)
    assert rouge_scores(["кот"], ["кот"])["rougeL"] == pytest.approx(100)


def test_bleu_by_hand() -> None:
    written, gold = "the cat sat on the mat today", "the cat sat on the mat"
    precisions = [6 / 7, 5 / 6, 4 / 5, 3 / 4]
    bleu = math.exp(sum(map(math.log, precisions)) / 4)
    scores = translation_scores([written], [gold])
    assert scores["bleu"] == pytest.approx(100 * bleu)
    assert 0 < scores["chrf"] < 100
    same = translation_scores([gold], [gold])
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100)
