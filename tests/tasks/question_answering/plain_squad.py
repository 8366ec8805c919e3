"""The SQuAD scores once more, written from their definition: exact fractions, no shortcuts."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Iterable
from fractions import Fraction


@functools.cache
def plain_words(text: str) -> list[str]:
    """Words of a text, by characters: no regular expression, no translation table."""
    kept = [char for char in text.lower() if char not in string.punctuation]
    runs: list[str] = []
    for char in kept:  # a run is a stretch of letters and digits, or one other character
        if char.isalnum() and runs and runs[-1].isalnum():
            runs[-1] += char
        else:
            runs.append(char)
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def plain_exact(prediction: str, gold: str) -> Fraction:
    return Fraction(plain_words(prediction) == plain_words(gold))


def plain_f1(prediction: str, gold: str, *, both_empty: int) -> Fraction:
    predicted, wanted = plain_words(prediction), plain_words(gold)
    if not predicted and not wanted:
        return Fraction(both_empty)
    left, shared = list(wanted), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            shared += 1
    return Fraction(2 * shared, len(predicted) + len(wanted))


# F1 is a fraction with a small denominator: added up as whole numbers, which is exact and quick.
SCALE = math.lcm(*range(1, 120))


def whole(score: Fraction) -> int:
    scaled = score * SCALE
    assert scaled.denominator == 1
    return scaled.numerator


def total_of(scores: Iterable[Fraction]) -> Fraction:
    return Fraction(sum(whole(score) for score in scores), SCALE)


def plain_v1(predictions: dict[str, str], golds: dict[str, list[str]]) -> dict[str, float]:
    exact = [max(plain_exact(predictions[i], g) for g in golds[i]) for i in golds]
    f1 = [max(plain_f1(predictions[i], g, both_empty=0) for g in golds[i]) for i in golds]
    return {
        "exact_match": float(100 * total_of(exact) / len(golds)),
        "f1": float(100 * total_of(f1) / len(golds)),
    }


def plain_v2(
    predictions: dict[str, str],
    golds: dict[str, list[str]],
    probabilities: dict[str, float],
    threshold: float,
) -> dict[str, float]:
    scores: dict[str, float] = {"total": len(golds)}
    rows = list(predictions)
    has = {i: len(golds[i]) > 0 for i in rows}
    accepted = {i: [g for g in golds[i] if plain_words(g)] or [""] for i in rows}
    raw = {
        "exact": {i: max(plain_exact(predictions[i], g) for g in accepted[i]) for i in rows},
        "f1": {
            i: max(plain_f1(predictions[i], g, both_empty=1) for g in accepted[i]) for i in rows
        },
    }
    for name, values in raw.items():
        final = {
            i: Fraction(not has[i]) if probabilities[i] > threshold else values[i] for i in rows
        }
        for prefix, part in (
            ("", rows),
            ("HasAns_", [i for i in rows if has[i]]),
            ("NoAns_", [i for i in rows if not has[i]]),
        ):
            if part:
                scores[f"{prefix}{name}"] = float(
                    100 * total_of(final[i] for i in part) / len(part)
                )
                scores[f"{prefix}total"] = len(part)
        # answer the k surest questions, for every k
        surest = sorted(rows, key=lambda i: probabilities[i])
        total = SCALE * sum(not has[i] for i in rows)
        best, best_threshold = total, 0.0
        for i in surest:
            total += whole(values[i]) if has[i] else -SCALE * (predictions[i] != "")
            if total > best:
                best, best_threshold = total, probabilities[i]
        scores[f"best_{name}"] = float(Fraction(100 * best, SCALE * len(rows)))
        scores[f"best_{name}_thresh"] = best_threshold
    return scores
