"""What windows of SQuAD and answers from logits cost, beside the code of Hugging Face's run_qa.

    OMP_NUM_THREADS=1 python benchmarks/squad_features.py --run_qa DIR --model MODEL \
        --train_file FILE --validation_file FILE --record

``DIR`` has ``run_qa.py`` and ``utils_qa.py`` of transformers' examples
(``examples/pytorch/question-answering``). Their functions are run as they stand there. Both take
turns in one process; shown are CPU seconds (medians) and the quartiles of the ratios of neighbours.
The floor of windows is the tokenizer alone. What both make is compared, too.
"""

from __future__ import annotations

import argparse
import ast
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import datasets
import torch
from datasets import Dataset
from report import circumstances, replace_section, write_json
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

from hf_distill.tasks.question_answering import (
    load_question_answering_dataset,
    postprocess,
    prepare_eval_features,
    prepare_train_features,
)

MAX_LENGTH, DOC_STRIDE = 384, 128
TURNS = 7
BATCH = 1_000
"""Rows that ``Dataset.map`` hands over at a time."""


class RunQa:
    """The functions of ``run_qa.py``, which are nested in its ``main``, and of ``utils_qa.py``."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        source = (folder / "run_qa.py").read_text(encoding="utf-8")
        names: dict[str, Any] = {
            "tokenizer": tokenizer,
            "pad_on_right": tokenizer.padding_side == "right",
            "max_seq_length": MAX_LENGTH,
            "data_args": SimpleNamespace(doc_stride=DOC_STRIDE, pad_to_max_length=False),
            "question_column_name": "question",
            "context_column_name": "context",
            "answer_column_name": "answers",
        }
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("prepare_"):
                module = ast.Module(body=[node], type_ignores=[])
                exec(compile(module, "run_qa.py", "exec"), names)
        self.train: Callable[..., Any] = names["prepare_train_features"]
        self.validation: Callable[..., Any] = names["prepare_validation_features"]
        self.answers: Callable[..., Any] = runpy.run_path(str(folder / "utils_qa.py"))[
            "postprocess_qa_predictions"
        ]

    @staticmethod
    def windows(rows: Dataset, function: Callable[..., Any]) -> Dataset:
        """Do what ``run_qa.py`` does with these functions."""
        return rows.map(function, batched=True, remove_columns=rows.column_names)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returns."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def take_turns(ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let some ways of the same work take turns; the first turn is not counted.

    Returns:
        The seconds of each turn, and what each way made.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Any] = {}
    for turn in range(TURNS + 1):
        for name, work in ways.items():
            seconds, made[name] = cpu_seconds(work)
            if turn:
                times[name].append(seconds)
    return {name: [round(one, 4) for one in taken] for name, taken in times.items()}, made


def tokenize(rows: Dataset, tokenizer: Any) -> None:
    """Do what no way of cutting windows can do without."""
    for begin in range(0, len(rows), BATCH):
        part = rows[begin : begin + BATCH]
        tokenizer(
            part["question"], part["context"], truncation="only_second", max_length=MAX_LENGTH,
            stride=DOC_STRIDE, return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip


def equal_rows(ours: Dataset, theirs: Dataset, columns: tuple[str, ...]) -> str:
    """Say of how many windows some columns are the same."""
    pairs = zip(ours.select_columns(columns), theirs.select_columns(columns), strict=True)
    same = sum(one == other for one, other in pairs)
    return f"{same:,} of {len(ours):,} windows"


def logits_of(model: str, windows: Dataset, tokenizer: Any) -> tuple[Any, Any]:
    """Return the start and the end logits of windows, filled up to one width."""
    reader = AutoModelForQuestionAnswering.from_pretrained(model).eval()
    columns = [name for name in tokenizer.model_input_names if name in windows.column_names]
    collate = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=MAX_LENGTH)
    starts, ends = [], []
    with torch.inference_mode():
        for begin in range(0, len(windows), 16):
            part = windows.select_columns(columns)[begin : begin + 16]
            output = reader(**collate(part))
            starts.append(output.start_logits)
            ends.append(output.end_logits)
    return torch.cat(starts).numpy(), torch.cat(ends).numpy()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each kind of work, and what both made of it."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    theirs = RunQa(options.run_qa, tokenizer)
    length: dict[str, Any] = {"max_length": MAX_LENGTH, "doc_stride": DOC_STRIDE}
    train = load_question_answering_dataset(options.train_file)
    dev = load_question_answering_dataset(options.validation_file)
    columns = ("input_ids", "attention_mask")
    results = {}

    times, made = take_turns({
        "floor": lambda: tokenize(train, tokenizer),
        "run_qa": lambda: theirs.windows(train, theirs.train),
        "ours": lambda: prepare_train_features(train, tokenizer, **length),
    })  # fmt: skip
    places = (*columns, "start_positions", "end_positions")
    results["windows to train on"] = {
        "rows": len(train), "times": times,
        "same": equal_rows(made["ours"], made["run_qa"], places),
    }  # fmt: skip

    times, made = take_turns({
        "floor": lambda: tokenize(dev, tokenizer),
        "run_qa": lambda: theirs.windows(dev, theirs.validation),
        "ours": lambda: prepare_eval_features(dev, tokenizer, **length),
    })  # fmt: skip
    results["windows to evaluate on"] = {
        "rows": len(dev), "times": times,
        "same": equal_rows(made["ours"], made["run_qa"], (*columns, "offset_mapping")),
    }  # fmt: skip

    ours, other = made["ours"], made["run_qa"]
    start, end = logits_of(options.model, ours, tokenizer)
    times, made = take_turns({
        "run_qa": lambda: theirs.answers(dev, other, (start, end)),
        "ours": lambda: postprocess(dev, ours, start, end, no_answer_threshold=None),
    })  # fmt: skip
    same = sum(one.text == made["run_qa"][one.id] for one in made["ours"])
    results["answers, the best 20"] = {
        "rows": len(dev), "times": times, "same": f"{same:,} of {len(dev):,} best answers",
    }  # fmt: skip
    return results


def render(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| work | questions | tokenizer, s | run_qa, s | ours, s | run_qa / ours | same |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for work, result in results.items():
        times = result["times"]
        ratios = [a / b for a, b in zip(times["run_qa"], times["ours"], strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        floor = f"{median(times['floor']):.2f}" if "floor" in times else "–"
        lines.append(
            f"| {work} | {result['rows']:,} | {floor} | {median(times['run_qa']):.2f} | "
            f"{median(times['ours']):.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) | "
            f"{result['same']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print; with ``--record`` also write results/ and RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_qa", type=Path, required=True, help="folder of run_qa.py")
    parser.add_argument("--model", required=True, help="a fine-tuned model")
    parser.add_argument("--train_file", required=True, help="in SQuAD's format")
    parser.add_argument("--validation_file", required=True, help="in SQuAD's format")
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    options = parser.parse_args()
    datasets.disable_caching()
    datasets.disable_progress_bars()
    results = measure(options)
    print(render(results))
    if options.record:
        write_json("squad_features", {"results": results, **circumstances()})
        replace_section("squad_features", render(results))


if __name__ == "__main__":
    main()
