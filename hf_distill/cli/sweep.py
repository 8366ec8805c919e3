"""``hf-distill sweep``: many trainings over one cache of teacher outputs, and which is best."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from hf_distill.cli.output import shown_command
from hf_distill.cli.parsing import CommandParser
from hf_distill.cli.sweep_arguments import SWEEP_PACKAGES, SweepArguments
from hf_distill.cli.train import training_parser
from hf_distill.extras import require
from hf_distill.files import in_use

EXAMPLES = """\
examples:
  hf-distill sweep --config sweep.yaml

  where sweep.yaml holds the options of `hf-distill train` and what to search:
    task: question-answering
    student_model: SMALL_MODEL
    teacher_model: teacher
    train_file: train.json
    validation_file: dev.json
    output_dir: sweep
    search_space:
      temperature: [1, 2, 4, 8]
      distillation_loss_weight: {low: 0.0, high: 1.0, step: 0.25}
      learning_rate: {low: 1.0e-5, high: 1.0e-3, log: true}
      distillation_loss: [kl_div, mse]
    n_trials: 40

  each combination with three seeds
    hf-distill sweep --config sweep.yaml --seeds 0 1 2

  continue after an interruption, or with more trials: the same command again
    hf-distill sweep --config sweep.yaml --n_trials 80

The validation data chose the winner, so judge it in the end on other data.
"""


def build_parser(*, outlined: bool = False) -> CommandParser:
    return training_parser(
        outlined=outlined,
        further=[SweepArguments],
        title="search",
        prog="hf-distill sweep",
        usage="hf-distill sweep --config FILE [options]",
        description="Train a student with many combinations of options, and show which is best. "
        "The teacher runs\nonce: its outputs are cached in --output_dir (or were before: "
        "--teacher_outputs).",
        epilog=EXAMPLES,
        help_texts={
            "output_dir": "Where the sweep goes: a folder for each trial, the cached teacher "
            "outputs, report.html, report.md, sweep.json, sweep.md and sweep.png.",
            "overwrite_output_dir": "Delete the trials of an earlier sweep in --output_dir. Its "
            "cached teacher outputs are used again if they fit.",
        },
    )


def run(argv: Sequence[str]) -> None:
    """Search, as far as that was not done before, and report."""
    build_parser(outlined=True).given(argv)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"a sweep is one process, but WORLD_SIZE={os.environ['WORLD_SIZE']} processes were "
            "launched; run it as `hf-distill sweep …`, and for more GPUs divide the search space "
            "into several sweeps, one --output_dir and CUDA_VISIBLE_DEVICES each."
        )
    for package in SWEEP_PACKAGES:
        require(package, "sweep")

    from hf_distill.cli.continuing import continued_by
    from hf_distill.cli.sweep_plan import read_plan
    from hf_distill.cli.sweep_run import run_sweep
    from hf_distill.reports.pages import sweep_page, write_sweep
    from hf_distill.reports.report import write_report
    from hf_distill.reports.terminal import print_rows

    plan = read_plan(build_parser(), argv)
    busy = (
        f"--output_dir {plan.output_dir}: another sweep is at work in this folder; wait for it, or "
        "choose another folder."
    )
    with in_use(plan.output_dir / ".sweep.lock", busy):
        with continued_by("repeat the command", overwrites=plan.overwrite):
            report = run_sweep(plan)
        written = write_sweep(report, plan.output_dir)
        page = sweep_page(report, shown_command("sweep", argv))
        written += write_report(page, plan.output_dir)
    print_rows(f"{plan.output_dir.name}: {report.metric}", report.header(), report.rows())
    sys.stdout.write(f"{report.headline()}\n")
    sys.stdout.write(f"In {plan.output_dir}: {', '.join(path.name for path in written)}\n")
