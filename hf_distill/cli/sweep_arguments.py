"""The options of ``hf-distill sweep`` and of no training, and which can be searched.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_distill.cli.train_arguments import TrainDataArguments
from hf_distill.tasks.options import SCORING_OPTIONS, TaskArguments, names, option

SWEEP_PACKAGES = ("optuna", "matplotlib")
"""Those of the extra `sweep`."""


@dataclass
class SweepArguments:
    """The options of a sweep itself."""

    search_space: dict | str | None = option(
        help="The options to search, in the --config file: a list of values (temperature: "
        "[1, 2, 4]) or a range ({low: 1.0e-5, high: 1.0e-3, log: true}, {low: 0, high: 1, "
        "step: 0.25}). On the command line as one text: '{temperature: [1, 2, 4]}'."
    )
    sampler: str | None = option(
        help="How values are chosen: grid (all combinations, in their order), random, or tpe "
        "(where earlier trials were good). By default grid, or tpe where there is no end of "
        "values.",
        choices=["grid", "tpe", "random"],
    )
    n_trials: int | None = option(
        help="How many combinations to try. By default all of a grid, and 20 of the others. A "
        "finished sweep continues with more."
    )
    metric: str | None = option(
        help="What to judge a trial by: a figure of `eval` in metrics.json. By default the "
        "primary one of the task."
    )
    seeds: list[int] | None = option(
        help="Train each combination once with each of these seeds, and judge it by the "
        "mean. By default once, with --seed."
    )
    keep_all_trials: bool = option(
        False, help="Keep the students of all trials, not just the best one."
    )
    live_teacher: bool = option(
        False,
        help="Run the teacher in every trial instead of caching its outputs once: for "
        "intermediate layers, and for fill-mask, whose masks are drawn again each time.",
    )


TEACHER_OPTIONS = (
    "teacher_model", "teacher_weights", "teacher_combination",
    "teacher_dtype", "teacher_attn_implementation",
)  # fmt: skip
"""The options that decide on the teacher's outputs."""

_OF_THE_SWEEP = {
    "task": "the trials of a sweep have one task",
    "output_dir": "each trial has its own folder in --output_dir",
    "overwrite_output_dir": "each trial has its own folder",
    "resume": "a sweep resumes by itself",
    "resume_from_checkpoint": "a sweep resumes by itself",
    "config": "a sweep has one configuration",
    "recipe": "a sweep has one recipe; search its options",
    "baseline": "a student alone has other options; make it its own sweep",
    "teacher_outputs": "a sweep has one cache",
    "record_steps": "it changes nothing about the student",
    "do_train": "it has no effect",
    "do_eval": "it has no effect",
    "do_predict": "it has no effect",
    "bf16": "one process computes in one precision",
    "fp16": "one process computes in one precision",
    "use_cpu": "one process computes on one kind of device",
    "deepspeed": "one process has one configuration",
    "fsdp": "one process has one configuration",
    "fsdp_config": "one process has one configuration",
    "accelerator_config": "one process has one configuration",
}
_VALIDATION = ("validation_file", "validation_split", "max_eval_samples", "dataset_name",
               "dataset_config_name", "dataset_revision")  # fmt: skip

# Where and how a run writes, which has no bearing on what it comes to.
_NO_BEARING = (
    "keep_all_trials", "n_trials", "output_dir", "overwrite_output_dir", "config", "recipe",
    "preprocessing_num_workers", "disable_tqdm", "report_to", "run_name", "project",
)  # fmt: skip
_NO_BEARING_PREFIXES = ("log", "save_", "dataloader_", "trackio_")


def why_not_searched(name: str, *, cached: bool, seeds: bool) -> str | None:
    """Return why an option cannot be searched; ``None`` if it can.

    Args:
        name: of an option of ``hf-distill train``.
        cached: the trials learn from stored teacher outputs.
        seeds: the sweep has ``--seeds``.
    """
    if name in _OF_THE_SWEEP:
        return _OF_THE_SWEEP[name]
    if name in _VALIDATION:
        return "scores on different data cannot be compared"
    if name == "seed" and seeds:
        return "--seeds are trained for each combination already"
    if name.startswith(("push_to_hub", "hub_")):
        return "the trials are not pushed to the Hub"
    if not cached:
        return None
    if name in TEACHER_OPTIONS:
        return "the teacher's outputs are cached once; sweep each teacher by itself, or " + _LIVE
    prepares = set(names(TrainDataArguments, TaskArguments)) - set(SCORING_OPTIONS)
    if name in prepares:
        return (
            "the cached teacher outputs belong to one preparation of the data; sweep each by "
            f"itself, or {_LIVE}"
        )
    return None


_LIVE = "run the teacher in every trial (--live_teacher)"


def affects_result(name: str) -> bool:
    """Return whether this option can change a trial's result."""
    return name not in _NO_BEARING and not name.startswith(_NO_BEARING_PREFIXES)
