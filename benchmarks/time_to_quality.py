r"""CPU minutes until a student is nearly as good as its teacher, with other tools and with ours.

Each tool trains a student for some epochs, by its own documented settings, on 2,000 questions of
SQuAD; each epoch's student is scored by the same command. All get the same two students: some
layers of the teacher's encoder with a new head, and one that `create-student` made; `shrink` makes
its own. CPU seconds are those of the whole process: imports, data, the teacher's outputs, training;
of `shrink` also the choice of a shape and the scores that decide when to stop. What has a result is
not run again:

    OMP_NUM_THREADS=1 python benchmarks/time_to_quality.py --data_dir DIR --squad_teacher DIR \
        --large_encoder DIR --small_encoder DIR --peer_dir DIR
    python benchmarks/time_to_quality.py --table

The other tools train in float32 on a CPU unless they are told otherwise; with ``--float32`` ours
does so, too, and the results have names of their own. Peers are installed into environments in
``--peer_dir``, as those of ``peers.py``. ``--quick`` tries everything on some questions, and
records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from bench import ONE_THREAD
from created_students import SQUAD, Created, add_options
from matplotlib.ticker import LogLocator
from other_tokenizer import cut
from peer_environments import PEERS, ROOT, python_of
from peer_workers import environment_of
from report import FOLDER, RESULTS, circumstances, read_json, replace_section
from squad_stages import write_sample
from task_distillation import Job
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, set_seed

from hf_distill.cli.precision import bfloat16_pays
from hf_distill.plotting import declutter, new_figure

SHARES = (90, 95, 98)
"""Percent of the teacher's F1."""
QUICK_QUESTIONS = 60
IN_BFLOAT16, IN_FLOAT32 = "time_to_quality", "time_to_quality_float32"
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


@dataclass(frozen=True)
class Tool:
    """Who trains, and how it is told to in its documentation."""

    title: str
    script: str
    settings: str
    options: tuple[str, ...] = ()
    """In the place of its defaults."""


CHOSEN = ("--temperature", "4", "--distillation_loss_weight", "1", *SQUAD.student.split())
"""The settings of the other benchmarks on SQuAD."""

TOOLS = {
    "shrink": Tool("hf_distill, `shrink`", "ours", "its defaults"),
    "ours": Tool(
        "hf_distill, `cache` and `train`",
        "ours",
        "temperature 4, weight 1, 3e-4, batches of 24",
        CHOSEN,
    ),
    "defaults": Tool(
        "hf_distill, `cache` and `train`, by default",
        "ours",
        "temperature 2, weight 0.5, 5e-5, batches of 8",
    ),
    "haystack": Tool(
        PEERS["haystack"].title, "haystack", "temperature 5, weight 1, 3e-5, batches of 10"
    ),
    "textbrewer": Tool(
        PEERS["textbrewer"].title,
        "textbrewer",
        "hidden states and logits, temperature 8, 1e-4 with warm-up, batches of 32",
    ),
    "snippet": Tool(
        PEERS["snippet"].title, "snippet", "temperature 5, half the labels, 5e-5, batches of 8"
    ),
    "chosen": Tool(
        f"{PEERS['snippet'].title}, settings chosen",
        "snippet",
        "temperature 4, weight 1, 3e-4, batches of 24",
        CHOSEN,
    ),
}
STUDENTS = {"cut": "given: 3 of 6 layers", "created": "given: created, half as wide"}


class Race(Created):
    """The students, and a process per training."""

    @property
    def scored(self) -> Job:
        """The job with the rows to score on."""
        few = f"{SQUAD.data} --max_eval_samples {QUICK_QUESTIONS}"
        return replace(SQUAD, data=few) if self.options.quick else SQUAD

    @cached_property
    def f1_of_teacher(self) -> float:
        """The aim is a share of it."""
        f1: float = self.score(self.scored, Path(self.teacher(SQUAD)))["f1"]
        return f1

    def student_of(self, kind: str) -> str:
        """The folder of the student that all tools are given."""
        if kind == "created":
            return str(self.create(SQUAD, "6x192", 0)[0])
        folder = self.work / "cut-student"
        if not (folder / "config.json").exists():
            set_seed(0)
            encoder = cut(self.options.large_encoder, self.work / "cut-encoder")
            made: Any = AutoModelForQuestionAnswering.from_pretrained(encoder, dtype=torch.float32)
            made.save_pretrained(folder)
            AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
        return str(folder)

    def train_and_score(self, name: str, kind: str) -> dict[str, Any]:
        """Train in a process of its own, then score each point."""
        tool, output = TOOLS[name], self.work / f"race-{name}-{kind}"
        shutil.rmtree(output, ignore_errors=True)
        data = self.pairs(SQUAD)
        setting = {
            "teacher": str(Path(self.teacher(SQUAD)).resolve()),
            "student": "" if name == "shrink" else str(Path(self.student_of(kind)).resolve()),
            "train_file": str(self.train_file().resolve()),
            "validation_file": data["--validation_file"],
            "output": str(output.resolve()),
            "epochs": self.options.epochs, "seed": self.options.seeds[0],
            "max_length": int(data["--max_length"]), "doc_stride": int(data["--doc_stride"]),
            "bf16": not self.options.float32 and bfloat16_pays(),
            "more": tool.options,
        }  # fmt: skip
        mine = tool.script == "ours"
        peer = "snippet" if tool.script in ("ours", "snippet") else name
        python = python_of(peer, self.options.peer_dir / "envs")
        environment = environment_of(self.options.peer_dir, ours=mine, even_times=True)
        with (self.work / f"{output.name}.log").open("w", encoding="utf-8") as log:
            subprocess.run(
                [str(python), str(FOLDER / "peers" / f"complete_{tool.script}.py"),
                 json.dumps(setting)],
                stdout=log, stderr=subprocess.STDOUT, check=True, env=environment, cwd=self.work,
            )  # fmt: skip
        done = json.loads((output / "points.json").read_text(encoding="utf-8"))
        points = [
            {"cpu_seconds": round(point["cpu_seconds"], 1),
             "f1": self.score(self.scored, output / point["folder"])["f1"]}
            for point in done["points"]
        ]  # fmt: skip
        return {
            "tool": name, "student": kind, "points": points, "epochs": self.options.epochs,
            "bf16": setting["bf16"],
            "teacher": self.f1_of_teacher,
            **circumstances(),
        }  # fmt: skip

    def result(self, name: str, kind: str) -> str:
        """The name of the file with what a tool made of a student."""
        return f"{IN_FLOAT32 if self.options.float32 else IN_BFLOAT16}-{name}-{kind}"

    def train_file(self) -> Path:
        """The questions; a few of them to try everything."""
        if not self.options.quick:
            return Path(self.pairs(SQUAD)["--train_file"])
        path = self.work / "train-quick.json"
        if not path.exists():
            write_sample(Path(self.options.data_dir) / "squad", path, QUICK_QUESTIONS)
        return path


def render() -> str:
    """Return a table per precision, with one row per tool and student."""
    titles = {IN_BFLOAT16: "In bfloat16 where a trainer has an option for it",
              IN_FLOAT32: "All in float32"}  # fmt: skip
    parts = [f"{title}:\n\n{table}" for name, title in titles.items() if (table := _table(name))]
    return "\n".join(parts)


def _table(precision: str) -> str:
    shares = " | ".join(f"{share} %" for share in SHARES)
    lines = [
        f"| student | tool | its settings | {shares} | best | CPU minutes in all |",
        f"|---|---|---|{'---:|' * (len(SHARES) + 2)}",
    ]
    for kind, title in {"own": "its own", **STUDENTS}.items():
        for name, tool in TOOLS.items():
            path = RESULTS / f"{precision}-{name}-{kind}.json"
            if path.exists():
                cells = [title, tool.title, tool.settings, *_cells(read_json(path))]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _cells(run: dict[str, Any]) -> list[str]:
    points, teacher = run["points"], run["teacher"]
    found = []
    for share in SHARES:
        reached = [p["cpu_seconds"] for p in points if 100 * p["f1"] >= share * teacher]
        found.append(f"{min(reached) / 60:.1f}" if reached else "–")
    best = max(point["f1"] for point in points)
    return [*found, f"{100 * best / teacher:.1f} %", f"{points[-1]['cpu_seconds'] / 60:.1f}"]


def draw() -> None:
    """Draw F1 by CPU minutes, a panel per student; `shrink` is in both."""
    runs = [read_json(path) for path in sorted(RESULTS.glob(f"{IN_BFLOAT16}-*.json"))]
    if not runs:
        return
    figure = new_figure(9.6, 3.6)
    panels = figure.subplots(1, len(STUDENTS), sharey=True)
    for panel, (kind, title) in zip(panels, STUDENTS.items(), strict=True):
        for (name, tool), colour in zip(TOOLS.items(), COLOURS, strict=True):
            for run in runs:
                if run["tool"] == name and run["student"] in (kind, "own"):
                    minutes = [point["cpu_seconds"] / 60 for point in run["points"]]
                    scores = [point["f1"] for point in run["points"]]
                    label = tool.title.replace("`", "")
                    panel.plot(minutes, scores, color=colour, marker="o", markersize=3, label=label)
        for share in (100, *SHARES):
            panel.axhline(runs[0]["teacher"] * share / 100, color="#999999", linewidth=0.7)
            panel.annotate(f"{share} %", (1, runs[0]["teacher"] * share / 100), fontsize=6,
                           xycoords=("axes fraction", "data"), va="bottom", ha="right")  # fmt: skip
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.set_xlabel("CPU minutes", fontsize=8)
        panel.set_title(title.removeprefix("given: "), fontsize=9)
        panel.tick_params(labelsize=7)
        declutter(panel)
    panels[0].set_ylabel("F1 on SQuAD", fontsize=8)
    panels[0].legend(fontsize=6, frameon=False)
    figure.savefig(FOLDER.parent / "docs" / "images" / "time-to-quality.png")


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet."""
    os.environ.update(ONE_THREAD, PYTHONPATH=str(ROOT))
    race = Race(options)
    for name in options.tools:
        for kind in ["own"] if name == "shrink" else STUDENTS:
            if options.quick:
                race.prepare(SQUAD)
                print(json.dumps(race.train_and_score(name, kind)), flush=True)
            else:
                run = partial(race.train_and_score, name, kind)
                race.run_once(race.result(name, kind), SQUAD, run)


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, [SQUAD.name])
    parser.set_defaults(work_dir="build/time_to_quality", seeds=[0])
    parser.add_argument("--peer_dir", type=Path, help="environments of the peers")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--float32", action="store_true", help="train in float32, all tools")
    parser.add_argument("--quick", action="store_true", help="two epochs on some questions")
    options = parser.parse_args()
    if options.quick:
        options.work_dir, options.epochs = f"{options.work_dir}-quick", 2
    if not options.table:
        work(options)
    if not options.quick:
        replace_section("time_to_quality", render())
        draw()


if __name__ == "__main__":
    main()
