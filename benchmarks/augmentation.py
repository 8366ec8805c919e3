"""What data augmentation costs and how good it is: grouped and single masking, and a peer.

    python benchmarks/augmentation.py --model MODEL --squad_path train-v1.1.json.gz

The peer is Haystack v1's algorithm, written again on the same model and texts: every word of one
token in a pass of its own, batches of 16 within a context, logits of all tokens. Its own script, in
its own environment, is in ``augmentation_peers.py``.
Times are CPU seconds of one thread, context by context in turns; the table is Markdown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from report import RESULTS, record_part, replace_section
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

from hf_distill.augmentation import WordSubstituter
from hf_distill.augmentation.drawing import apply, draw
from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.files import display_name
from hf_distill.tasks.question_answering import load_question_answering_dataset


def plain_candidates(model: Any, tokenizer: Any, text: str, count: int, batch: int) -> int:
    """Haystack's way: one word a pass. Returns the number of passes."""
    encoding = tokenizer(text)
    ids, words = encoding["input_ids"], encoding.word_ids()
    pieces = Counter(words)
    places = [i for i, word in enumerate(words) if word is not None and pieces[word] == 1]
    for start in range(0, len(places), batch):
        part = places[start : start + batch]
        rows = torch.tensor([ids] * len(part))
        rows[torch.arange(len(part)), torch.tensor(part)] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=rows).logits
        logits[torch.arange(len(part)), torch.tensor(part)].softmax(-1).topk(count)
    return len(places)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and what it returned."""
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def pseudo_perplexity(model: Any, tokenizer: Any, texts: Sequence[str], places: int) -> float:
    """Exp of the mean surprise at some tokens, each masked by itself (Salazar et al. 2020)."""
    generator = random.Random(0)
    losses = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=256)["input_ids"]
        chosen = generator.sample(range(1, len(ids) - 1), min(places, len(ids) - 2))
        rows = torch.tensor([ids] * len(chosen))
        rows[torch.arange(len(chosen)), torch.tensor(chosen)] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=rows).logits[torch.arange(len(chosen)), torch.tensor(chosen)]
        targets = torch.tensor([ids[place] for place in chosen])
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    return float(torch.tensor(losses).mean().exp())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything."""
    rows = load_question_answering_dataset(options.squad_path)
    contexts = list(dict.fromkeys(rows["context"]))
    near = [text for text in contexts if 100 <= len(text.split()) <= 160]
    texts = near[:: max(len(near) // options.contexts, 1)][: options.contexts]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForMaskedLM.from_pretrained(options.model, dtype=torch.float32).eval()
    ours = {
        masking: WordSubstituter(
            MaskedLanguageModel(model, tokenizer, masking=masking, device="cpu"),
            word_possibilities=options.word_possibilities,
        )
        for masking in ("grouped", "single")
    }
    seconds: dict[str, list[float]] = {"one word a pass, plain": [], "single": [], "grouped": []}
    found: dict[str, list[Any]] = {"grouped": [], "single": []}
    passes = 0
    for text in texts:
        spent, count = timed(
            partial(plain_candidates, model, tokenizer, text, options.word_possibilities, 16)
        )
        passes += count
        seconds["one word a pass, plain"].append(spent)
        for name, substituter in ours.items():
            spent, (candidates,) = timed(partial(substituter.candidates, [text]))
            seconds[name].append(spent)
            found[name].append(candidates)
    overlaps = [
        len({*one.words} & {*other.words}) / max(len(other.words), 1)
        for here, there in zip(found["grouped"], found["single"], strict=True)
        for one, other in zip(here, there, strict=True)
    ]
    firsts = [
        one.words[0] == other.words[0]
        for here, there in zip(found["grouped"], found["single"], strict=True)
        for one, other in zip(here, there, strict=True)
    ]
    copies = {
        name: [
            apply(text, draw(text, words, replace_probability=0.4, seed=0, copy=1))
            for text, words in zip(texts, all_words, strict=True)
        ]
        for name, all_words in found.items()
    }
    base = sum(seconds["one word a pass, plain"])
    return {
        "model": display_name(options.model),
        "contexts": len(texts),
        "words a context": statistics.mean(len(text.split()) for text in texts),
        "passes of the plain way": passes,
        "seconds a context": {name: statistics.median(s) for name, s in seconds.items()},
        "times as fast as the plain way": {name: base / sum(s) for name, s in seconds.items()},
        "candidates shared by grouped and single": statistics.mean(overlaps),
        "same first candidate": statistics.mean(firsts),
        "pseudo-perplexity": {
            "original": pseudo_perplexity(model, tokenizer, texts, options.places),
            **{
                name: pseudo_perplexity(model, tokenizer, written, options.places)
                for name, written in copies.items()
            },
        },
    }


def render_cost(cost: dict[str, Any]) -> str:
    """Return the table of the ways to find candidates."""
    perplexity, shared = cost["pseudo-perplexity"], cost["candidates shared by grouped and single"]
    lines = [
        "| way | CPU s a context | times as fast | candidates shared with `single` | "
        f"pseudo-perplexity (originals: {perplexity['original']:.0f}) |",
        "|---|---|---|---|---|",
    ]
    for way, seconds in cost["seconds a context"].items():
        faster = cost["times as fast as the plain way"][way]
        also = f"{100 * shared:.0f} %" if way == "grouped" else ""
        score = f"{perplexity[way]:.0f}" if way in perplexity else ""
        lines.append(f"| {way} | {seconds:.2f} | {faster:.1f} | {also} | {score} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--squad_path", required=True)
    parser.add_argument("--contexts", type=int, default=12)
    parser.add_argument("--word_possibilities", type=int, default=15)
    parser.add_argument("--places", type=int, default=24, help="tokens a text, for perplexity")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    content = measure(options)
    record_part("augmentation", "cost", content)
    replace_section("augmentation_cost", render_cost(content))
    print((RESULTS / "augmentation.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
