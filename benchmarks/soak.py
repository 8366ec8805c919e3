"""Two stages on two processes, killed again and again: do they end with the same weights?

    python benchmarks/soak.py [--kills 20] [--steps 20] [--record]

``hf-distill train --resume`` under ``accelerate launch``, with projections, dropout, accumulation
and ``--save_total_limit 2``. All processes get SIGKILL at random steps of the whole run, some of
them in the middle of saving; in between the launcher gets a SIGTERM, as on a machine that is taken
away. Every time the same command goes on. Exits with 1 if a bit of the weights is different.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import record_part, replace_section
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from hf_distill import DistillationTrainer
from hf_distill.checkpoints import RECORD_FILE
from hf_distill.cli.main import main as command
from hf_distill.layers import PROJECTIONS_FILE

PROCESSES = 2
STAGES = ("intermediate", "prediction")
WORDS = [f"w{i}" for i in range(60)]


class Blow(NamedTuple):
    """A moment at which the run is interrupted."""

    stage: str
    step: int
    kind: str
    """``step``: some time after it began; ``saving``: while its checkpoint is written; ``SIGTERM``:
    to the launcher."""


def material(folder: Path, dice: random.Random) -> None:
    """Two random models, a tokenizer and a table."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    for seed, (name, layers, width) in enumerate((("teacher", 4, 32), ("student", 2, 16))):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * width,
            initializer_range=0.5,
            id2label={0: "no", 1: "yes"},
            label2id={"no": 0, "yes": 1},
        )
        BertForSequenceClassification(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [
        f"{' '.join(dice.choices(WORDS, k=12))},{dice.choice(['no', 'yes'])}" for _ in range(64)
    ]
    (folder / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")


class Launch:
    """The command, in processes of its own.

    Args:
        folder: with the material.
        output: the run's folder.
        steps: of each stage.
    """

    def __init__(self, folder: Path, output: Path, steps: int) -> None:
        self._marks = Path(tempfile.mkdtemp(dir=folder))
        self._output = output
        options = {
            "task": "text-classification",
            "student_model": folder / "student",
            "teacher_model": folder / "teacher",
            "train_file": folder / "train.csv",
            "output_dir": output,
            "intermediate_max_steps": steps,
            "attention_loss": "scores",
            "max_steps": steps,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "temperature_schedule": "linear",
            "temperature": 4,
            "temperature_end": 1,
            "teacher_check_samples": 0,
            "logging_steps": 1,
            "report_to": "none",
        }
        words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self._marks / "log").open("w") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
                 "--num_machines", "1", "--num_processes", str(PROCESSES),
                 "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
                 __file__, "--child", str(self._marks), *words, "--resume", "--use_cpu"],
                env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )  # fmt: skip

    def finish(self) -> None:
        """Let it run to its end."""
        if self._launcher.wait(600) != 0:
            raise RuntimeError((self._marks / "log").read_text())

    def strike(self, blow: Blow, dice: random.Random) -> str:
        """Interrupt it there, or as soon as possible after; returns what it was doing."""
        earlier = self._checkpoints()
        due = (STAGES.index(blow.stage), blow.step)
        reached = self._wait(lambda: self._progress() >= due)
        if reached and blow.kind == "SIGTERM":
            self._launcher.send_signal(signal.SIGTERM)
            self._launcher.wait(120)
            return "stopped by SIGTERM"
        if reached and blow.kind == "saving":
            reached = self._wait(lambda: bool(self._checkpoints() - earlier))
        if not reached:
            return "it was finished"
        time.sleep(dice.uniform(0, 0.03 if blow.kind == "saving" else 0.05))
        for pid in (*self._pids, self._launcher.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._launcher.wait()
        while any(Path(f"/proc/{pid}").exists() for pid in self._pids):
            time.sleep(0.01)
        new = self._checkpoints() - earlier
        half = [path for path in new if path.exists() and not (path / RECORD_FILE).exists()]
        return f"killed while saving {half[0].name}" if half else "killed"

    def _checkpoints(self) -> set[Path]:
        return set(self._output.rglob("checkpoint-*"))

    def _progress(self) -> tuple[int, int]:
        """The stage and the step that it has begun."""
        marks = (path.name.split("-") for path in self._marks.glob("*-*"))
        return max(((STAGES.index(stage), int(step)) for stage, step in marks), default=(-1, 0))

    @property
    def _pids(self) -> list[int]:
        return [int(path.name) for path in self._marks.glob("[0-9]*")]

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Whether something happened before the run was finished."""
        while not condition():
            if self._launcher.poll() is not None:
                if self._launcher.returncode != 0:
                    raise RuntimeError((self._marks / "log").read_text())
                return condition()
            time.sleep(0.001)
        return True


class Mark(TrainerCallback):
    """Tells the parent how far the run is."""

    def __init__(self, marks: str) -> None:
        self._marks = marks

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave a file that names the step, and the parent time to aim."""
        time.sleep(0.05)
        Path(self._marks, f"{args.stage}-{state.global_step}").touch()


def child(marks: str, options: list[str]) -> None:
    torch.set_num_threads(1)
    Path(marks, str(os.getpid())).touch()
    untouched = DistillationTrainer.train

    def train(self: DistillationTrainer, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(Mark(marks))
        return untouched(self, *args, **kwargs)

    DistillationTrainer.train = train  # type: ignore[method-assign]
    status = command(["train", *options])
    os._exit(status or 0)  # gloo aborts at exit now and then


def plan(kills: int, steps: int, dice: random.Random) -> list[Blow]:
    """Moments of the whole run, in their order; every third while saving, two SIGTERMs more."""
    blows = []
    for place in range(kills):
        stage = dice.choice(STAGES)
        # Checkpoints are written after every second step.
        if place % 3 == 0:
            blows.append(Blow(stage, dice.randrange(1, steps, 2), "saving"))
        else:
            blows.append(Blow(stage, dice.randrange(steps), "step"))
    blows += [Blow(stage, dice.randrange(1, steps - 1), "SIGTERM") for stage in STAGES]
    return sorted(blows, key=lambda blow: (STAGES.index(blow.stage), blow.step))


def weights(output: Path, steps: int) -> dict[str, Any]:
    """Of both stages, projections included."""
    files = {
        "student": output / "model.safetensors",
        "first stage": output / STAGES[0] / "model.safetensors",
        "projections": output / STAGES[0] / f"checkpoint-{steps}" / PROJECTIONS_FILE,
    }
    return {f"{w}/{k}": v for w, file in files.items() for k, v in load_file(file).items()}


def main() -> None:
    """Run, interrupt, compare."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material(folder, dice)
        Launch(folder, folder / "whole", options.steps).finish()
        lines: list[dict[str, Any]] = []
        for blow in plan(options.kills, options.steps, dice):
            found = Launch(folder, folder / "struck", options.steps).strike(blow, dice)
            lines.append({"stage": blow.stage, "step": blow.step, "found": found})
            print(json.dumps(lines[-1]), flush=True)
        Launch(folder, folder / "struck", options.steps).finish()
        whole, struck = (weights(folder / name, options.steps) for name in ("whole", "struck"))
    different = [k for k in whole.keys() | struck.keys() if not _equal(whole, struck, k)]
    saving = sum("saving" in line["found"] for line in lines)
    verdict = (
        f"{options.kills} × SIGKILL ({saving} of them while a checkpoint was written) and 2 × "
        f"SIGTERM in a run of {options.steps} + {options.steps} steps on {PROCESSES} processes: "
        f"{len(whole) - len(different)} of {len(whole)} tensors bit for bit those of the "
        "uninterrupted run."
    )
    print(verdict)
    if options.record:
        record_part("soak", "soak", {"blows": lines, "different": different, "verdict": verdict})
        replace_section("soak", verdict + "\n")
    sys.exit(bool(different))


def _equal(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    return name in one and name in other and torch.equal(one[name], other[name])


if __name__ == "__main__":
    main()
