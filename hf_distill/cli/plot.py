"""``hf-distill plot``: losses and recorded attentions of a run as images."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.cli.run_folder import INTERMEDIATE, PICTURES, read_state, recorded_samples
from hf_distill.tasks.options import names, option

if TYPE_CHECKING:
    from hf_distill.layers.mapping import LayerPair
    from hf_distill.layers.samples import RecordedSample

EXAMPLES = """\
examples:
  hf-distill train … --record_steps 200 --output_dir distilled
  hf-distill plot distilled
  hf-distill plot distilled --step 400 --layers 3:6 --head 0
"""


@dataclass
class PlotArguments:
    """Choices between recorded attentions."""

    step: int | None = option(
        help="The recorded sentence: the step at which it was recorded. By default the last one."
    )
    layers: str | None = option(
        help="The layers whose attentions are drawn, student:teacher, such as 3:6; counted from 1. "
        "By default the last pair that learns from each other."
    )
    head: int | None = option(
        help="The attention head, from 0. By default the mean of all heads of a layer."
    )


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [PlotArguments],
        prog="hf-distill plot",
        usage="hf-distill plot RUN_FOLDER [--step N] [--layers STUDENT:TEACHER] [--head N]",
        description="Draw what a run of `hf-distill train` recorded: the losses over time, and "
        "with --record_steps the attentions of teacher and student side by side. The images go to "
        "RUN_FOLDER/pictures; those of the first of two stages have names that begin with "
        "`intermediate_`.",
        sections=[Section("plots", ["run_folder", *names(PlotArguments)])],
        positional={"run_folder": "The --output_dir of the run, finished or not."},
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Draw all there is, and list it."""
    options, positional = build_parser().parse(argv)
    folder = Path(positional.run_folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: this folder does not exist; name the --output_dir of a run.")

    from hf_distill.files import display_name
    from hf_distill.reports.terminal import print_rows

    stages = [stage for stage in (folder / INTERMEDIATE, folder) if stage.is_dir()]
    rows = [row for stage in stages for row in _draw(folder, stage, options)]
    if not rows:
        steps = [state.get("global_step", 0) for state in map(_state, stages) if state]
        if steps:
            raise ValueError(
                f"{folder} holds nothing to draw: no loss was logged in {max(steps):,} steps. "
                "Train with --logging_steps of at most that many."
            )
        raise ValueError(
            f"{folder} holds nothing to draw: neither a trainer_state.json nor recorded samples. "
            "Name the --output_dir of a run that has logged something."
        )
    if not any("attention" in name for name, _ in rows):
        for name, value in vars(options).items():
            if value is not None:
                recorded = sorted({step for stage in stages for step in recorded_samples(stage)})
                there = (
                    f"only those of the steps {recorded}" if recorded else "no recorded attentions"
                )
                raise ValueError(
                    f"--{name} {value}: there are {there} in {folder} (--record_steps of "
                    "`hf-distill train` records them)."
                )
        sys.stderr.write("No attentions were recorded: train with --record_steps for those.\n")
    print_rows(f"{display_name(folder)}: plots", ("file", "content"), rows, names=True)
    sys.stdout.write(f"They are in {folder / PICTURES}.\n")


def _draw(folder: Path, stage: Path, options: PlotArguments) -> Iterator[tuple[str, str]]:
    """Draw what a stage has, and yield each file's name and content."""
    from hf_distill.layers.samples import read_sample
    from hf_distill.plotting import plot_losses
    from hf_distill.reports.attention_maps import plot_attention

    prefix, label = "", ""
    if stage != folder:
        prefix, label = f"{INTERMEDIATE}_", "intermediate stage: "
    history = _state(stage).get("log_history", [])
    if any("loss" in entry for entry in history):
        file = plot_losses(history, folder / PICTURES / f"{prefix}losses.png")
        last = max(entry["step"] for entry in history)
        yield file.name, f"{label}losses up to step {last:,}"
    samples = recorded_samples(stage)
    step = next(reversed(samples), None) if options.step is None else options.step
    if step not in samples:
        return
    sample = read_sample(samples[step])
    pair = _pair(sample, options.layers)
    which = "" if options.head is None else f"_head_{options.head}"
    name = f"{prefix}attention_step_{sample.step}_layers_{pair.student}_{pair.teacher}{which}.png"
    plot_attention(sample, pair, folder / PICTURES / name, head=options.head)
    heads = "mean of all heads" if options.head is None else f"head {options.head}"
    text = " ".join(sample.tokens or ())
    text = text if len(text) <= 60 else f"{text[:57]}…"
    content = (
        f"{label}attention at step {sample.step:,}, layer {pair.student} of the student and "
        f"{pair.teacher} of the teacher, {heads}: {text}"
    )
    yield name, content


def _state(stage: Path) -> dict[str, Any]:
    """Return the trainer's state, that of the last checkpoint if the run is unfinished."""
    from hf_distill.checkpoints import last_complete_checkpoint

    checkpoint = last_complete_checkpoint(stage)
    return read_state(stage) or ({} if checkpoint is None else read_state(Path(checkpoint)))


def _pair(sample: RecordedSample, layers: str | None) -> LayerPair:
    from hf_distill.layers.mapping import LayerPair

    pairs = [pair for pair in sample.layer_pairs if pair.student and pair.teacher]
    recorded = ", ".join(f"{pair.student}:{pair.teacher}" for pair in pairs)
    if layers is None:
        if not pairs:
            raise ValueError(
                f"The sample of step {sample.step} has no attentions, only embeddings; train with "
                "another --layer_mapping."
            )
        return pairs[-1]
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", layers)
    if match is None:
        raise ValueError(
            f"--layers {layers} is not a pair of layers; write student:teacher. The recorded pairs "
            f"are {recorded}."
        )
    chosen = LayerPair(*map(int, match.groups()))
    # Any two recorded layers may be looked at side by side.
    if not any(p.student == chosen.student for p in pairs) or not any(
        p.teacher == chosen.teacher for p in pairs
    ):
        raise ValueError(f"--layers {layers} was not recorded; the recorded pairs are {recorded}.")
    return chosen
