"""What goes wrong with the checkpoints of a training, and what comes of it: a table.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_faults.py [--record]

Needs root, for a disk that runs full (a small tmpfs). ``soak.py`` is about processes that are
killed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from cache_faults import data, little_room, refusal, render, teacher
from report import record_part, replace_section

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.checkpoints import RECORD_FILE, last_complete_checkpoint

STEPS = 4
Row = tuple[str, int, str]


def trainer_for(folder: Path, teacher_model: Any = None, **options: Any) -> DistillationTrainer:
    """Four steps on both kinds of layers, with a narrower student, a checkpoint after each."""
    torch.manual_seed(1)
    student = type(teacher())(
        transformers.BertConfig(
            vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=128,
        )
    )  # fmt: skip
    return DistillationTrainer(
        model=student,
        teacher_model=teacher() if teacher_model is None else teacher_model,
        args=DistillationTrainingArguments(
            str(folder),
            **{
                "distillation_loss_weight": 1.0,
                "hidden_states_loss_weight": 1.0,
                "max_steps": STEPS,
                "save_strategy": "steps",
                "save_steps": 1,
                "use_cpu": True,
                "report_to": "none",
                "disable_tqdm": True,
                **options,
            },
        ),
        train_dataset=data().map(lambda row: {"token_type_ids": [0] * len(row["input_ids"])}),
    )


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """Those of the student."""
    student: Any = trainer.model
    return {name: value.clone() for name, value in student.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def said(work: Callable[[], Any], folder: Path) -> str:
    """What the refusal of something says, without the folder."""
    message = refusal(work)
    return "NOT refused" if message is None else f"“{message.replace(str(folder), '…')}”"


def damaged(whole: Path, end: dict[str, torch.Tensor], folder: Path) -> list[Row]:
    """Each file of the last checkpoint cut, then removed."""
    outcomes: dict[str, list[str]] = {"cut to its half": [], "removed": []}
    names = sorted(path.name for path in (whole / f"checkpoint-{STEPS}").iterdir())
    for how, found in outcomes.items():
        for name in names:
            run = folder / f"{how} {name}"
            shutil.copytree(whole, run)
            path = run / f"checkpoint-{STEPS}" / name
            if how == "removed":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            passed_over = last_complete_checkpoint(run) == str(run / f"checkpoint-{STEPS - 1}")
            trainer = trainer_for(run)
            trainer.train(resume_from_checkpoint=True)
            if passed_over and equal(weights(trainer), end):
                found.append(name)
            shutil.rmtree(run)
    return [
        (
            f"a file of the last checkpoint {how} ({', '.join(names)})",
            len(names),
            f"{len(found)} × the one before was used, the warning named the file, and the run "
            "ended with the same weights",
        )
        for how, found in outcomes.items()
    ]


def full(whole: Path, end: dict[str, torch.Tensor], folder: Path) -> list[Row]:
    """A tmpfs with room for one checkpoint and a half."""
    size = sum(p.stat().st_size for p in (whole / "checkpoint-1").iterdir())
    small = folder / "small"
    with little_room(small, size * 3 // 2):
        run = small / "run"
        message = said(lambda: trainer_for(run, save_total_limit=1).train(), run)
        left = sorted(p.name for p in run.glob("checkpoint-*"))
        kept = last_complete_checkpoint(run) == str(run / "checkpoint-1")
        subprocess.run(["mount", "-o", f"remount,size={size * 9}", small], check=True)
        trainer = trainer_for(run)
        trainer.train(resume_from_checkpoint=True)
        same = equal(weights(trainer), end)
    outcome = (
        f"{message} Left: {', '.join(left)}, complete: {kept}. With more room, from there to the "
        f"same weights: {same}"
    )
    return [("the disk runs full while a checkpoint is written (tmpfs)", 1, outcome)]


def killed_while_deleting(whole: Path, end: dict[str, torch.Tensor], folder: Path) -> list[Row]:
    """An older checkpoint is half deleted."""
    run = folder / "rotated"
    shutil.copytree(whole, run)
    names = sorted(p.name for p in (run / "checkpoint-1").iterdir())
    for name in names[: len(names) // 2]:
        (run / "checkpoint-1" / name).unlink()
    newest = last_complete_checkpoint(run) == str(run / f"checkpoint-{STEPS}")
    message = said(
        lambda: trainer_for(run).train(resume_from_checkpoint=str(run / "checkpoint-1")), run
    )
    return [
        (
            "killed while an older checkpoint was deleted",
            1,
            f"the newest is used: {newest}; the rest of the older one, if it is named: {message}",
        )
    ]


def changed(whole: Path, end: dict[str, torch.Tensor], folder: Path) -> list[Row]:
    """The same folder with another distillation."""
    nudged = teacher()
    with torch.no_grad():
        next(nudged.parameters())[0, 0] += 1e-6
    cases: dict[str, dict[str, Any]] = {
        "one weight of the teacher, by 1e-6": {"teacher_model": nudged},
        "the teacher's folder is gone": {"teacher_model": str(folder / "gone")},
        "temperature": {"temperature": 4.0},
        "distillation_loss": {"distillation_loss": "mse"},
        "stage": {"stage": "intermediate", "attention_loss_weight": 0.0},
        "layer_mapping": {"layer_mapping": "last"},
    }
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    rows = []
    for what, options in cases.items():
        message = said(
            lambda options=options: trainer_for(whole, **options).train(  # type: ignore[misc]
                resume_from_checkpoint=True
            ),
            folder,
        )
        rows.append((f"resumed with another: {what}", 1, message.replace("\n", " ")))
    untouched = {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    rows.append(("the checkpoints after these refusals", len(cases), f"untouched: {untouched}"))
    return rows


def nonsense(whole: Path, end: dict[str, torch.Tensor], folder: Path) -> list[Row]:
    """A record that is no record, and a checkpoint that has none."""
    run = folder / "nonsense"
    shutil.copytree(whole, run)
    for number, text in enumerate(("{", "[]", json.dumps({"format": 9, "files": {}})), start=2):
        (run / f"checkpoint-{number}" / RECORD_FILE).write_text(text)
    used = last_complete_checkpoint(run) == str(run / "checkpoint-1")
    outcome = f"passed over, and checkpoint-1 is used: {used}"
    return [("a record that is not JSON, not a record, of another version", 3, outcome)]


def main() -> None:
    """Try, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = trainer_for(folder / "whole")
        trainer.train()
        end = weights(trainer)
        for trial in (damaged, full, killed_while_deleting, nonsense, changed):
            rows += trial(folder / "whole", end, folder)
    print(render(rows))
    if arguments.record:
        record_part("checkpoint_faults", "checkpoints", {"rows": rows})
        replace_section("checkpoint_faults", render(rows))


if __name__ == "__main__":
    main()
