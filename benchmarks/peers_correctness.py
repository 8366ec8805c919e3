"""Whether other tools and ours compute the same update where they should, in six cases.

    OMP_NUM_THREADS=1 python benchmarks/peers_correctness.py --work_dir DIR --record

The workers and environments are those of ``peers.py``. Tiny random models in float32 are trained
twice by each tool's own loop, and how far each weight moved is compared: a step of 8 rows with the
same 8 rows as two micro-batches, with more padding, or in two processes; a teacher with the same
teacher whose labels are in another order; attentions with SDPA and with eager attention; and four
steps with two steps, a checkpoint and two steps. No verdict is typed: each is what was computed, or
what the tool raised.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peer_environments import OURS, PEERS, NotPossibleError, python_of
from peer_workers import Worker, environment_of
from peers_correctness_files import ROWS, SIZES, models, rows
from report import record_part, replace_section
from safetensors.torch import load_file
from torch import Tensor

NAME = "peers_correctness"
TOOLS = {
    "ours": OURS,
    **PEERS,
    "snippet_scaled": replace(
        PEERS["snippet"],
        title=f"{PEERS['snippet'].title} and `loss_is_scaled_for_ga = False`",
        way="scaled",
    ),
}
SAME = 1e-4
"""Updates whose difference is a smaller share of their size are the same: float32 rounds."""
TASKS = {
    "qa": "question answering",
    "qa_cached": "question answering",
    "classification": "classification",
    "lm": "language model",
    "scores_cached": "scores",
    "attention": "layers",
}
SGD = 0.1
WHOLE: dict[str, Any] = {"batch_size": ROWS, "steps": 1, "sgd": SGD}
RESUMED: dict[str, Any] = {"batch_size": 4, "steps": 4, "save_at": 2}
RUNS: dict[str, dict[str, Any]] = {
    "whole": WHOLE,
    "accumulated": {**WHOLE, "batch_size": ROWS // 2, "accumulation": 2},
    "padded": WHOLE,
    "permuted": WHOLE,
    "sdpa": {**WHOLE, "implementation": "sdpa"},
    "eager": {**WHOLE, "implementation": "eager"},
    "without": {**WHOLE, "task": "hidden"},
    "uninterrupted": RESUMED,
    "resumed": {**RESUMED, "resume": True},
    "processes": {**WHOLE, "batch_size": ROWS // 2},
}
"""Trainings by name: the settings of each, next to those that depend on the task."""
PROCESSES = 2
PATIENCE = 3600
"""Seconds that one training may take on a machine with other work."""
NOT_OFFERED = "not offered"
SILENT = {"error": "the process ended, or waited for the other one", "meant": False}


@dataclass(frozen=True)
class Case:
    """Two trainings that should move the weights by the same."""

    title: str
    expected: str
    tried: str
    judge: Callable[..., str]
    """Of the updates of both, and of the third training if there is one."""
    tasks: Mapping[str, tuple[str, ...]]
    """By tool. Empty: not offered. A case does not apply to the work of a tool that is missing."""
    without: str = ""
    """A third training, without what the case is about."""

    @property
    def runs(self) -> tuple[str, ...]:
        """All trainings."""
        return tuple(run for run in (self.expected, self.tried, self.without) if run)


def compared(expected: Tensor, tried: Tensor) -> str:
    """Say whether an update is another one, a multiple of it, or neither."""
    size = float(expected.norm())
    off = float((tried - expected).norm()) / size
    if off < SAME:
        return "same"
    factor = float(tried @ expected) / size**2
    rest = float((tried - factor * expected).norm()) / size
    # A factor says more than a difference where hardly anything else differs.
    if abs(factor - 1) > 0.02 and rest < 0.01 * abs(factor):
        return f"× {factor:.2f}"
    if factor > 1.5 and rest < 0.5 * factor:
        return f"× {factor:.2f}, and differs by {share(rest / factor)}"
    return f"differs by {share(off)}"


def share(part: float) -> str:
    """Return a share of an update as a percentage with two digits, or more for a large one."""
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def compared_labels(expected: Tensor, tried: Tensor) -> str:
    """Say whether labels were aligned."""
    verdict = compared(expected, tried)
    return "aligned" if verdict == "same" else f"not aligned: {verdict}"


def compared_ranks(expected: Tensor, tried: Tensor) -> str:
    """Say whether all processes have the update, and whether it is that of one process."""
    ranks = tried.view(PROCESSES, -1)
    apart = compared(ranks[0], ranks[1])
    if apart != "same":
        return f"the two processes' updates differ: {apart.removeprefix('differs ')}"
    return compared(expected, ranks[0])


def compared_attentions(expected: Tensor, tried: Tensor, without: Tensor | None = None) -> str:
    """Say whether attentions are compared with SDPA as they are in eager attention."""
    if without is not None and compared(without, expected) == "same":
        return "attentions are never in the loss"
    if without is not None and compared(without, tried) == "same":
        return "left out of the loss, no error"
    return compared(expected, tried)


ALL_TASKS = {
    "ours": ("qa", "classification", "lm", "scores_cached"),
    "snippet": ("qa", "classification", "lm"),
    "snippet_scaled": ("qa", "classification", "lm"),
    "haystack": ("qa_cached",),
    "textbrewer": ("qa", "classification", "lm"),
    "modelopt": ("qa", "classification", "lm"),
    "silverspoon": ("classification", "lm"),
    "trl": ("lm",),
    "sentence_transformers": ("scores_cached",),
}
"""All that each tool does here, of what others do."""


def tasks(*names: str, **other: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the tasks of these names by tool, with exceptions."""
    found = {tool: tuple(t for t in all_ if t in names) for tool, all_ in ALL_TASKS.items()}
    return {tool: names for tool, names in {**found, **other}.items() if names or tool in other}


EVERY = ("qa", "qa_cached", "classification", "lm", "scores_cached")
CASES = {
    "accumulation": Case("accumulation", "whole", "accumulated", compared, tasks(*EVERY)),
    "padding": Case("padding", "whole", "padded", compared, tasks("qa", "lm")),
    "processes": Case(
        "two processes", "whole", "processes", compared_ranks, tasks(*EVERY, haystack=())
    ),
    "labels": Case(
        "labels in another order", "whole", "permuted", compared_labels, tasks("classification")
    ),
    "attentions": Case(
        "attentions with SDPA",
        "eager",
        "sdpa",
        compared_attentions,
        {
            tool: ("attention",)
            for tool in (
                "ours",
                "snippet",
                "snippet_scaled",
                "haystack",
                "textbrewer",
                "modelopt",
                "silverspoon",
            )
        },
        "without",
    ),
    "resume": Case("resume", "uninterrupted", "resumed", compared, tasks(*EVERY, textbrewer=())),
}


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    work_dir: Path

    def setting(self, tool: str, task: str, run: str, rank: int) -> dict[str, Any]:
        """Write what a worker reads for a training, and return what it is told."""
        # The checkpoint is there.
        place = self.folder(tool) / task / ("uninterrupted" if run == "resumed" else run)
        place.mkdir(parents=True, exist_ok=True)
        return {
            "task": task,
            "way": TOOLS[tool].way,
            "models": str(models(task, run, self.work_dir / "models")),
            "rows": str(rows(task, run, RUNS[run]["steps"], self.work_dir / "rows")),
            "output": str(place),
            "temperature": 2.0,
            "teacher_layers": SIZES.teacher_layers,
            "student_layers": SIZES.student_layers,
            "labelled": task in ("classification", "lm"),
            "update": str(self.update(tool, task, run, rank)),
            **RUNS[run],
        }

    def folder(self, tool: str) -> Path:
        """Return the folder of what a tool's trainings write."""
        return self.work_dir / "output" / NAME / tool

    def update(self, tool: str, task: str, run: str, rank: int = 0) -> Path:
        """Return the file of the update of a training."""
        return self.folder(tool) / f"{task}-{run}-{rank}.safetensors"

    def train(self, tool: str, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Let a tool train for each task and run; return its answers by the file of the update.

        A process trains for all that need one; two more for what needs two.
        """
        peer = TOOLS[tool]
        ours = peer.script == OURS.script
        environment = environment_of(self.work_dir, ours=ours, even_times=False)
        several = [one for one in asked if one[1] == "processes"]
        alone = [one for one in asked if one not in several]
        ranks, port = range(PROCESSES), str(free_port())
        groups = [
            [{"runs": [self.setting(tool, *one, 0) for one in alone], "environment": {}}],
            [
                {
                    "runs": [self.setting(tool, *one, rank) for one in several],
                    "environment": ranked(rank, port),
                }
                for rank in (ranks if several else ())
            ],
        ]
        answers: dict[str, Any] = {}
        with Worker(
            python_of(tool, self.work_dir / "envs") if peer.packages else Path(sys.executable),
            peer.script,
            {"groups": groups},
            environment={**environment, "ACCELERATE_USE_CPU": "true"},
            log=self.work_dir / "logs" / NAME / f"{tool}.log",
            is_ours=ours,
            patience=PATIENCE,
        ) as worker:
            while not (answer := worker.answer()).get("all"):
                answers[answer["update"]] = answer
        return answers


def ranked(rank: int, port: str) -> dict[str, str]:
    """Return the variables of one of several processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def read_update(*paths: Path) -> Tensor:
    """Read updates of all weights as one vector, in float64."""
    vectors = []
    for path in paths:
        weights = load_file(path)
        vectors += [weights[name].flatten().double() for name in sorted(weights)]
    return torch.cat(vectors)


def measure(bench: Bench, tool: str, cases: Sequence[str]) -> dict[str, Any]:
    """Return the verdicts of a tool by case and task, and its versions."""
    shutil.rmtree(bench.folder(tool), ignore_errors=True)
    asked: dict[tuple[str, str], None] = {}  # in order, and each once
    for name in cases:
        for task in CASES[name].tasks.get(tool, ()):
            asked |= dict.fromkeys((task, run) for run in CASES[name].runs)
    try:
        answers = bench.train(tool, list(asked))
    except NotPossibleError as reason:
        return {"verdicts": {}, "peer_versions": {}, "reason": str(reason)}
    verdicts = {
        name: {
            task: judge(bench, tool, CASES[name], task, answers) for task in CASES[name].tasks[tool]
        }
        for name in cases
        if tool in CASES[name].tasks
    }
    told = [answer for answer in answers.values() if "versions" in answer]
    return {"verdicts": verdicts, "peer_versions": told[0]["versions"] if told else {}}


def judge(
    bench: Bench, tool: str, case: Case, task: str, answers: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the verdict of a case for one task, and the losses of each training."""
    files: dict[str, list[Path]] = {
        run: [
            bench.update(tool, task, run, rank)
            for rank in range(PROCESSES if run == "processes" else 1)
        ]
        for run in case.runs
    }
    found = {
        run: [answers.get(str(path), SILENT) for path in paths] for run, paths in files.items()
    }
    losses = {run: [answer.get("losses") for answer in given] for run, given in found.items()}
    for answer in (*found[case.tried], *found[case.expected]):
        if "error" in answer:
            kind = "refused" if answer["meant"] else "error"
            return {"verdict": f"{kind}: {answer['error']}", "losses": losses}
    batches = len(found[case.tried][0]["losses"])
    if case.tried == "resumed" and batches != RESUMED["steps"] - RESUMED["save_at"]:
        return {"verdict": f"trains {batches} steps after the checkpoint", "losses": losses}
    compared_runs = [run for run in case.runs if "error" not in found[run][0]]
    verdict = case.judge(*(read_update(*files[run]) for run in compared_runs))
    if obstacle := found[case.tried][0]["obstacle"]:
        verdict = f"{verdict}, after working around {obstacle}"
    return {"verdict": verdict, "losses": losses}


def render(results: Mapping[str, Any]) -> str:
    """Markdown of the verdicts of all tools."""
    titles = [case.title for case in CASES.values()]
    lines = [
        f"| tool | {' | '.join(titles)} |",
        "|---|" + "---|" * len(titles),
    ]
    for tool in ALL_TASKS:
        if tool not in results:
            continue
        if "reason" in results[tool]:
            lines.append(
                f"| {TOOLS[tool].title} | {results[tool]['reason']} |" + " |" * (len(CASES) - 1)
            )
        else:
            cells = [_cell(tool, name, results[tool]["verdicts"].get(name)) for name in CASES]
            lines.append(f"| {_title(tool, results[tool])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(tool: str, result: Mapping[str, Any]) -> str:
    versions = result["peer_versions"]
    title = TOOLS[tool].title
    platform = ", ".join(f"{name} {versions[name]}" for name in ("transformers", "torch"))
    return f"{title}; {platform}"


def _cell(tool: str, case: str, verdicts: Mapping[str, Any] | None) -> str:
    if verdicts is None:
        return "not measured" if tool in CASES[case].tasks else "–"
    if not verdicts:
        return NOT_OFFERED
    by_verdict: dict[str, list[str]] = {}
    for task, found in verdicts.items():
        by_verdict.setdefault(found["verdict"], []).append(TASKS[task])
    return "; ".join(
        f"{', '.join(names)}: {_shortened(verdict)}" for verdict, names in by_verdict.items()
    )


def _shortened(text: str) -> str:
    plain = text.replace("|", "/").replace("\n", " ")
    return plain if len(plain) <= 120 else f"{plain[:119]}…"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, judge, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, required=True, help="environments, models, logs")
    parser.add_argument("--tools", nargs="+", default=list(ALL_TASKS), choices=ALL_TASKS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--record", action="store_true", help="write results/ and RESULTS.md, all cases of a tool"
    )
    options = parser.parse_args(arguments)
    if options.record and options.cases != list(CASES):
        parser.error("--record takes all cases: leave --cases out.")
    bench = Bench(options.work_dir.resolve())
    measured = {}
    for tool in options.tools:
        measured[tool] = measure(bench, tool, options.cases)
        print(render({tool: measured[tool]}).splitlines()[-1], flush=True)
        if options.record:
            replace_section(NAME, render(record_part(NAME, tool, measured[tool])))
    print(render(measured))


if __name__ == "__main__":
    main()
