r"""A small classifier from a language model's scores of label words: the runs behind RESULTS.md.

A language model labels texts without gold labels (`hf-distill label`), an encoder is trained from
its probabilities (`hf-distill train --teacher_column`), and then on a few gold labels, or on these
alone. Every run is a command as a user types it, executed in this process. Each finished run leaves
one JSON file in ``results/``; what is there is not run again:

    OMP_NUM_THREADS=1 python benchmarks/label_words.py --data_dir DIR --language_model SMOLLM2 \
        --encoder MINILM_L6
    python benchmarks/label_words.py --table
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from pathlib import Path
from typing import Any

from report import RESULTS, circumstances, replace_section, write_json
from squad_distillation import claim
from squad_table import spread
from task_distillation import run_command

NAMES = ("negative", "positive")
GOLD = (100, 1_000)
LABEL = (
    "--label_words negative positive --chat no --calibrate --teacher_dtype float32 --use_cpu "
    "--batch_size 16"
)
PROMPT = "Review: {text}\nSentiment:"
COMMON = (
    "--task text-classification --max_length 64 --learning_rate 1e-4 --warmup_steps 0.1 --bf16 "
    "--use_cpu --save_strategy no --logging_steps 20 --no_eval_with_teacher --overwrite_output_dir"
)
TAUGHT = (
    "--teacher_column probabilities --distillation_loss_weight 1.0 --temperature 1 "
    "--per_device_train_batch_size 32 --num_train_epochs 3"
)
ALONE = {
    100: "--baseline --per_device_train_batch_size 16 --num_train_epochs 20",
    1_000: "--baseline --per_device_train_batch_size 32 --num_train_epochs 5",
}


def read_rows(path: Path, most: int | None = None) -> list[tuple[str, str]]:
    """Read texts and the names of their labels, at most so many at even distances."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").rsplit("\t", 1) for line in file][1:]
    rows = [(text.strip(), NAMES[int(label)]) for text, label in lines]
    return rows if most is None else spaced(rows, most)


def spaced(rows: list[Any], most: int) -> list[Any]:
    """At most so many rows, at even distances."""
    return [rows[i * len(rows) // most] for i in range(most)]


def write_rows(path: Path, rows: list[tuple[str, str]], *, labels: bool = True) -> None:
    """Write texts, with the names of their labels or without."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"] if labels else ["text"])
        table.writerows(row if labels else row[:1] for row in rows)


class Runs:
    """The files and the commands."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work = Path(options.work_dir)
        self.work.mkdir(parents=True, exist_ok=True)
        data = Path(options.data_dir) / "sst2"
        self.rows = read_rows(data / "train.tsv.gz", options.rows)
        write_rows(self.work / "texts.csv", self.rows, labels=False)
        write_rows(self.work / "test.csv", read_rows(data / "test-labeled.tsv.gz"))
        for count in GOLD:
            write_rows(self.work / f"gold-{count}.csv", spaced(self.rows, count))

    def label(self) -> dict[str, Any]:
        """Let the language model label the texts; its accuracy, with calibration and without."""
        target = self.work / "labelled.jsonl"
        cpu = time.process_time()
        run_command("label", "--teacher_model", self.options.language_model, "--train_file",
                    str(self.work / "texts.csv"), "--prompt", PROMPT, *LABEL.split(),
                    "--output_path", str(target))  # fmt: skip
        cpu = time.process_time() - cpu
        manifest = json.loads(target.with_name("labelled.jsonl.manifest.json").read_text())
        free = manifest["calibration"]["probabilities"]
        rows = [json.loads(line)["probabilities"] for line in target.read_text().splitlines()]
        plain = [{name: row[name] * free[name] for name in NAMES} for row in rows]
        gold = [label for _, label in self.rows]
        return {
            "options": f"{LABEL} --prompt {PROMPT!r}", "rows": len(rows), "manifest": manifest,
            "accuracy": {"calibrated": _accuracy(rows, gold), "as it is": _accuracy(plain, gold)},
            "cpu_seconds": round(cpu, 1), **circumstances(),
        }  # fmt: skip

    def train(self, name: str, seed: int) -> dict[str, Any]:
        """Train a student: from the probabilities, on gold labels, or on both in turn."""
        output = self.work / f"{name}-{seed}"
        way, _, count = name.partition("-")
        student = self.options.encoder
        if way == "taught":
            options, file = TAUGHT, "labelled.jsonl"
        else:
            options, file = ALONE[int(count)], f"gold-{count}.csv"
        if way == "both":
            student = str(self.work / f"taught-{seed}")
        cpu = time.process_time()
        run_command("train", "--student_model", student, "--train_file", str(self.work / file),
                    "--validation_file", str(self.work / "test.csv"), *COMMON.split(),
                    *options.split(), "--seed", str(seed), "--output_dir", str(output))  # fmt: skip
        cpu = time.process_time() - cpu
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        return {
            "options": f"{COMMON} {options}", "eval": metrics["eval"], "steps": metrics["steps"],
            "cpu_seconds": round(cpu, 1), **circumstances(),
        }  # fmt: skip


def _accuracy(rows: list[dict[str, float]], gold: list[str]) -> float:
    right = sum(max(NAMES, key=row.__getitem__) == one for row, one in zip(rows, gold, strict=True))
    return 100 * right / len(gold)


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet and that no other process is doing."""
    runs = Runs(options)
    ways = ["taught", *(f"{way}-{count}" for count in GOLD for way in ("alone", "both"))]
    plan: list[tuple[str, int]] = [("label", 0)]
    plan += [(name, seed) for seed in options.seeds for name in ways]
    for name, seed in plan:
        result = f"label-words-{name}-{seed}"
        with claim(runs.work / f"{result}.lock") as mine:
            if mine and not (RESULTS / f"{result}.json").exists():
                print(f"{time.strftime('%X')} {result}", flush=True)
                write_json(result, runs.label() if name == "label" else runs.train(name, seed))


def render() -> str:
    """Markdown: a table by the number of gold labels."""

    def scores(name: str) -> str:
        paths = sorted(RESULTS.glob(f"label-words-{name}-*.json"))
        found = [json.loads(path.read_text())["eval"]["accuracy"] for path in paths]
        return spread(found) if found else "–"

    label = json.loads((RESULTS / "label-words-label-0.json").read_text(encoding="utf-8"))
    accuracy = label["accuracy"]
    lines = [
        f"The language model's own labels of the {label['rows']:,} training texts: accuracy "
        f"{accuracy['as it is']:.1f}, calibrated {accuracy['calibrated']:.1f}; "
        f"{label['cpu_seconds'] / 60:.1f} minutes of one core.\n",
        "| gold labels | on these alone | from the language model, then on these |",
        "|---|---|---|",
        f"| 0 | – | {scores('taught')} |",
        *(f"| {n:,} | {scores(f'alone-{n}')} | {scores(f'both-{n}')} |" for n in GOLD),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("--data_dir", help="a folder with sst2/")
    parser.add_argument("--language_model", help="a causal language model")
    parser.add_argument("--encoder", help="a BERT encoder")
    parser.add_argument("--work_dir", default="build/label_words", help="files, models, locks")
    parser.add_argument("--rows", type=int, default=2_000, help="texts to label")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    if not options.table:
        for name in ("data_dir", "language_model", "encoder"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed to run anything")
        work(options)
    replace_section("label_words", render())


if __name__ == "__main__":
    main()
