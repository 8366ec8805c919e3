"""Fewer tokens in a ``tokenizer.json``: what must stay, and new ids for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

_KINDS = ("WordPiece", "Unigram", "BPE")


def read_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a tokenizer's ``tokenizer.json``.

    Raises:
        ValueError: it has none, or is of a kind that cannot be trimmed.
    """
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"processing_class is a {name} without tokenizer.json, and only fast tokenizers can be "
            "trimmed (one over characters or bytes has nothing to trim); use the model's fast "
            "tokenizer."
        )
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = content["model"].get("type")
    if kind not in _KINDS:
        raise ValueError(
            f"processing_class is a {name} of the kind {kind}; those that can be trimmed are "
            f"{', '.join(_KINDS)}."
        )
    return content


def needed_ids(content: Mapping[str, Any], used: set[int], keep_characters: bool) -> set[int]:
    """Return the ids that must be there for the used ones to come out as before."""
    model = content["model"]
    if model["type"] == "Unigram":
        pieces = {piece: i for i, (piece, _) in enumerate(model["vocab"])}
        scores = [score for _, score in model["vocab"]]
        # What an unknown character costs is counted from the lowest score of all.
        needed = {scores.index(min(scores)), *({model["unk_id"]} - {None})}
    else:
        pieces = model["vocab"]
        needed = {pieces[name] for name in [model.get("unk_token")] if name in pieces}
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    always: set[str] = set()
    if '"ByteLevel"' in json.dumps([content["pre_tokenizer"], content["normalizer"]]):
        always |= {*ByteLevel.alphabet()}
    if model.get("byte_fallback"):
        always |= {f"<0x{byte:02X}>" for byte in range(256)}
    for piece, i in pieces.items():
        letter = piece.removeprefix(prefix).removesuffix(suffix)
        if piece in always or (keep_characters and len(letter) == 1):
            needed.add(i)
    if model["type"] == "BPE":
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        wanted = used | needed
        for piece, i in pieces.items():
            if i in wanted:
                needed |= {pieces[p] for p in _parts(piece, ranks, prefix, suffix) if p in pieces}
    return needed


def renumbered(
    tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], numbers: Mapping[int, int]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the tokens that ``numbers`` gives a new id.

    Raises:
        ValueError: the library gives one of them another id.
    """
    model = content["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in numbers]
        if model["unk_id"] is not None:
            model["unk_id"] = numbers[model["unk_id"]]
    else:
        model["vocab"] = {piece: numbers[i] for piece, i in model["vocab"].items() if i in numbers}
    if model["type"] == "BPE":
        prefix, vocab = model.get("continuing_subword_prefix") or "", model["vocab"]
        model["merges"] = [
            [left, right]
            for left, right in _merges(model)
            if {left, right, left + right.removeprefix(prefix)} <= vocab.keys()
        ]
    for token in content["added_tokens"]:
        token["id"] = numbers[token["id"]]
    if content["padding"] is not None:
        content["padding"]["pad_id"] = numbers[content["padding"]["pad_id"]]
    _renumber(content["post_processor"], numbers)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        trimmed = type(tokenizer).from_pretrained(folder)
    trimmed.name_or_path = ""
    trimmed.init_kwargs["name_or_path"] = ""
    old = tokenizer.get_vocab()
    expected = {token: numbers[i] for token, i in old.items() if i in numbers}
    different = sorted(expected.items() ^ trimmed.get_vocab().items(), key=lambda item: item[1])
    if different:
        raise ValueError(
            f"processing_class is a {type(tokenizer).__name__} whose ids cannot be renumbered: "
            f"{different[0][0]!r} would not be {different[0][1]}. Use a tokenizer whose added "
            "tokens come after the others."
        )
    return trimmed


def _renumber(processor: Any, numbers: Mapping[int, int]) -> None:
    """Give the special tokens of a post-processor their new ids, in place."""
    if not processor:
        return
    for inner in processor.get("processors", ()):
        _renumber(inner, numbers)
    for name in ("cls", "sep"):
        if name in processor:
            processor[name][1] = numbers[processor[name][1]]
    special = processor.get("special_tokens", {})
    for token in special.values() if isinstance(special, dict) else special:
        token["ids"] = [numbers[i] for i in token["ids"]]


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in pairs]


def _parts(piece: str, ranks: Mapping[tuple[str, str], int], prefix: str, suffix: str) -> set[str]:
    """Return the pieces that BPE makes on the way from single characters to ``piece``."""
    starts_word = not (prefix and piece.startswith(prefix))
    inner = piece.removeprefix(prefix) if prefix else piece
    ends_word = bool(suffix) and inner.endswith(suffix)
    symbols = list(inner.removesuffix(suffix) if ends_word else inner)
    if not symbols:
        return set()
    symbols = [
        symbols[0] if starts_word else prefix + symbols[0],
        *(prefix + s for s in symbols[1:]),
    ]
    symbols[-1] += suffix if ends_word else ""
    found = {*symbols}
    while True:
        rank, place = min(
            ((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols))),
            default=(len(ranks), 0),
        )
        if rank == len(ranks):
            return found
        merged = symbols[place] + symbols[place + 1].removeprefix(prefix)
        symbols[place : place + 2] = [merged]
        found.add(merged)
