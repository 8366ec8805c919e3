"""Augmentation of SQuAD by other tools' own commands and by ours: CPU seconds, and what is wrong.

    python benchmarks/augmentation_peers.py --work_dir DIR --squad_path train-v1.1.json.gz \
        --model MASKED_LM --glove_path FILE --record

Each command is a process of its own, with one thread, and the commands take turns; CPU seconds are
those of the whole process, loading included. All get the same paragraphs, masked language model and
word vectors, and the settings of Haystack's script. nlpaug writes one version of a text, the others
20. What is wrong in the files is counted with no code of the package.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from peer_environments import PEERS, ROOT, python_of
from peer_workers import environment_of
from report import FOLDER, circumstances, replace_section, write_json
from transformers import AutoTokenizer

NAME = "augmentation_peers"
COPIES = 20
WORDS = (100, 160)
"""Of a paragraph."""
SPECIAL = re.compile(r"\[(?:SEP|CLS|MASK|PAD|UNK)\]|</?s>|<mask>|##", re.IGNORECASE)
WORD = re.compile(r"[\w'’-]+")
COUNTED = {
    "spacing or punctuation changed": "text outside the replaced words changed",
    "special tokens or pieces": "special tokens or word pieces in it",
    "answers lost": "answers lost",
    "answers misplaced": "answers misplaced",
    "ids used twice": "ids used twice",
    "same words as an original": "copies with all words of the original",
}
"""What is wrong in a file, and its column."""


@dataclass(frozen=True)
class Tool:
    """A command, and how many versions of each paragraph it writes."""

    title: str
    peer: str = ""
    """Whose environment; empty for ours."""
    copies: int = COPIES
    masking: str = ""


TOOLS = {
    "grouped": Tool("hf_distill", masking="grouped"),
    "single": Tool("hf_distill, `--masking single`", masking="single"),
    "haystack": Tool(f"{PEERS['haystack'].title}, its `augment_squad.py`", "haystack"),
    "nlpaug": Tool(f"{PEERS['nlpaug'].title}, `ContextualWordEmbsAug`", "nlpaug", copies=1),
}


def write_paragraphs(source: Path, path: Path, number: int) -> None:
    """Write so many paragraphs of medium length, evenly spaced."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    every = [
        part
        for article in articles
        for part in article["paragraphs"]
        if WORDS[0] <= len(part["context"].split()) <= WORDS[1]
    ]
    chosen = [every[i * len(every) // number] for i in range(number)]
    content = {"version": "1.1", "data": [{"title": "sample", "paragraphs": chosen}]}
    path.write_text(json.dumps(content), encoding="utf-8")


def defects(source: str, augmented: str) -> dict[str, int]:
    """What is wrong in an augmented SQuAD file."""

    def paragraphs(path: str) -> list[dict[str, Any]]:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return [p for article in content["data"] for p in article["paragraphs"]]

    original = {p["context"] for p in paragraphs(source)}
    folded = {" ".join(re.findall(r"\w+", text.lower())) for text in original}
    shapes = {WORD.sub("w", text) for text in original}
    counts: Counter[str] = Counter()
    ids: Counter[Any] = Counter()
    for paragraph in paragraphs(augmented):
        context = paragraph["context"]
        counts["paragraphs"] += 1
        counts["questions"] += len(paragraph["qas"])
        is_original = context in original
        counts["same words as an original"] += (
            not is_original and " ".join(re.findall(r"\w+", context.lower())) in folded
        )
        counts["special tokens or pieces"] += bool(SPECIAL.search(context))
        counts["spacing or punctuation changed"] += WORD.sub("w", context) not in shapes
        for question in paragraph["qas"]:
            ids[str(question["id"])] += 1
            answers = question["answers"]
            counts["answers lost"] += not answers and not question.get("is_impossible", False)
            counts["answers misplaced"] += any(
                context[a["answer_start"] : a["answer_start"] + len(a["text"])] != a["text"]
                for a in answers
            )
    counts["ids used twice"] = sum(count - 1 for count in ids.values())
    return dict(counts)


def write_model(model: Path, folder: Path) -> Path:
    """Copy a model, with the list of its tokens that the peers' release of transformers reads."""
    if not folder.exists():
        shutil.copytree(model, folder)
        tokens = AutoTokenizer.from_pretrained(model).get_vocab()
        text = "".join(f"{token}\n" for token in sorted(tokens, key=tokens.__getitem__))
        (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return folder


def command(tool: Tool, source: Path, output: Path, options: argparse.Namespace) -> list[str]:
    """Return what is run."""
    model, glove = str(options.model), str(options.glove_path.resolve())
    if tool.peer == "nlpaug":
        script = str(FOLDER / "peers" / "augment_nlpaug.py")
        python = python_of(tool.peer, options.work_dir / "envs")
        return [str(python), script, str(source), str(output), model]
    common = ["--squad_path", str(source), "--output_path", str(output), "--glove_path", glove,
              "--multiplication_factor", str(tool.copies), "--word_possibilities", "15",
              "--replace_probability", "0.4", "--batch_size", "16", "--model", model,
              "--tokenizer", model]  # fmt: skip
    if tool.peer == "haystack":
        python = python_of(tool.peer, options.work_dir / "envs")
        return [str(python), "-m", "haystack.utils.augment_squad", *common, "--device", "cpu"]
    ours = [sys.executable, "-m", "hf_distill", "augment", *common]
    return [*ours, "--masking", tool.masking, "--device", "cpu", "--dtype", "float32"]


def run(tool: Tool, arguments: Sequence[str], work_dir: Path) -> float:
    """Return the CPU seconds of a command."""
    environment = environment_of(work_dir, ours=not tool.peer, even_times=True)
    before = _spent()
    with (work_dir / "logs" / f"augment-{tool.peer or tool.masking}.log").open("w") as log:
        subprocess.run(
            arguments, stdout=log, stderr=subprocess.STDOUT, check=True, env=environment, cwd=ROOT
        )
    return _spent() - before


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Let the tools take turns, and count what is wrong in what they wrote."""
    folder = options.work_dir / "output" / NAME
    for path in (folder, options.work_dir / "logs"):
        path.mkdir(parents=True, exist_ok=True)
    source = folder / "source.json"
    write_paragraphs(options.squad_path, source, options.paragraphs)
    options.model = write_model(options.model, folder / "model")
    seconds: dict[str, list[float]] = {name: [] for name in TOOLS}
    for _ in range(options.turns):
        for name, tool in TOOLS.items():
            output = folder / f"{name}.json"
            output.unlink(missing_ok=True)
            spent = run(tool, command(tool, source, output, options), options.work_dir)
            print(f"{name}: {spent:.1f} CPU seconds", flush=True)
            seconds[name].append(round(spent, 2))
    return {
        name: {
            "copies": tool.copies,
            "cpu_seconds": seconds[name],
            **defects(str(source), str(folder / f"{name}.json")),
        }
        for name, tool in TOOLS.items()
    }


def render(results: dict[str, dict[str, Any]]) -> str:
    """Return the table."""
    head = ["tool", "versions", "CPU s (lowest–highest)", "CPU s a version", *COUNTED.values()]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for name, found in results.items():
        spent, middle = found["cpu_seconds"], median(found["cpu_seconds"])
        cells = [
            TOOLS[name].title, f"{found['copies']} × {found['paragraphs'] // found['copies']}",
            f"{middle:.1f} ({min(spent):.1f}–{max(spent):.1f})",
            f"{middle / found['copies']:.2f}", *(f"{found.get(key, 0):,}" for key in COUNTED),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("work_dir", "squad_path", "model", "glove_path"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--paragraphs", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    options = parser.parse_args()
    options.work_dir = options.work_dir.resolve()
    results = measure(options)
    print(render(results))
    if options.record:
        write_json(NAME, {"results": results, **circumstances()})
        replace_section(NAME, render(results))


if __name__ == "__main__":
    main()
