"""The plan of a sweep: read from its options, checked, and compared with an earlier one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_distill.cli.config_files import load_yaml
from hf_distill.cli.loading import task_of
from hf_distill.cli.parsing import CommandParser
from hf_distill.cli.sweep_arguments import (
    TEACHER_OPTIONS,
    SweepArguments,
    affects_result,
    why_not_searched,
)
from hf_distill.cli.train import training_parser
from hf_distill.cli.train_request import Request, read_request
from hf_distill.files import content_hash, display_name
from hf_distill.sweeping import SearchSpace, Value, read_search_space

TEACHER_OUTPUTS = "teacher_outputs"
"""The folder of the cache that a sweep makes, in its own."""

_TRIALS = 20
# So many combinations are checked in full before the first is trained.
_MOST_CHECKED = 256
# Options with which a training looks into the teacher.
_OF_LAYERS = (
    "intermediate_epochs", "intermediate_max_steps", "hidden_states_loss_weight",
    "attention_loss_weight", "record_steps",
)  # fmt: skip
_SOURCES = (
    "student_model", "teacher_model", "teacher_outputs", "train_file",
    "validation_file", "intermediate_train_file",
)  # fmt: skip


@dataclass(frozen=True)
class SweepPlan:
    """The options of a sweep, checked."""

    options: Mapping[str, Any]
    """Those of the trainings that are given, by name; without folders."""
    space: SearchSpace
    sampler: str
    n_trials: int
    metric: str | None
    """Without ``eval_``; ``None`` for the task's primary one."""
    seeds: tuple[int, ...]
    output_dir: Path
    keep_all_trials: bool
    makes_cache: bool
    """The teacher's outputs are still to be cached."""
    overwrite: bool
    parser: CommandParser
    """Of a training; what is wrong with its options is a ``ValueError``."""

    def request(self, options: Mapping[str, Any], folder: Path, **further: Any) -> Request:
        """Make the request of a training in a folder, with further options of how it begins."""
        everything = {**options, **further, "output_dir": str(folder)}
        return read_request(self.parser, self.parser.words_of(everything, "options"))

    def trial_options(self, parameters: Mapping[str, Value], seed: int) -> dict[str, Any]:
        """Return the options of one training for ``hf-distill train``, without a folder."""
        options = {**self.options, **parameters}
        if "seed" not in parameters:
            options["seed"] = seed
        if self.makes_cache:
            options = {k: v for k, v in options.items() if k not in TEACHER_OPTIONS}
            options["teacher_outputs"] = str(self.output_dir / TEACHER_OUTPUTS)
        return {name: value for name, value in options.items() if value is not None}

    @cached_property
    def described(self) -> dict[str, Any]:
        """The settings that another sweep in the same folder must share."""
        contents = {
            f"{name} {display_name(one)}": content_hash(one)
            for name in _SOURCES
            for source in [self.options.get(name)]
            for one in (source if isinstance(source, list) else [source])
            if one is not None
        }
        return {
            "search_space": {
                name: _without_path(values) for name, values in self.space.to_dict().items()
            },
            "sampler": self.sampler,
            "seeds": list(self.seeds),
            "caches_teacher": self.makes_cache,
            "options": {
                name: _without_path(value)
                for name, value in self.options.items()
                if value is not None and affects_result(name) and name != "seed"
            },
            "contents": {name: value for name, value in contents.items() if value is not None},
        }


def read_plan(parser: CommandParser, argv: Sequence[str]) -> SweepPlan:
    """Read the options of a sweep, and check what they alone determine."""
    given = parser.given(argv)
    own = {f.name for f in fields(SweepArguments)}
    arguments = SweepArguments(**{name: given[name] for name in own & set(given)})
    options = {name: value for name, value in given.items() if name not in own}
    try:
        return _plan(arguments, options)
    except ValueError as error:
        parser.error(str(error))


def _plan(arguments: SweepArguments, options: dict[str, Any]) -> SweepPlan:
    _check_options(options)
    output_dir = Path(options.pop("output_dir")).expanduser()
    overwrite = bool(options.pop("overwrite_output_dir", False))
    for name in ("config", "recipe"):  # what they stand for is among the options
        options.pop(name, None)
    if arguments.live_teacher and options.get("teacher_outputs") is not None:
        raise ValueError("--live_teacher runs a teacher; leave --teacher_outputs out.")
    has_teacher = not options.get("baseline", False) and options.get("teacher_model") is not None
    makes_cache = (
        has_teacher and not arguments.live_teacher and options.get("teacher_outputs") is None
    )
    if options.get("task") is None:
        taught = {"teacher_model": options.get("teacher_model")}
        options["task"] = task_of(taught, teacher_outputs=options.get("teacher_outputs"))
    if makes_cache and options["task"] == "fill-mask":
        raise ValueError(
            "fill-mask draws other masks each time, so the teacher's outputs cannot be stored; "
            "add --live_teacher."
        )
    cached = makes_cache or options.get("teacher_outputs") is not None
    parser = training_parser(raises=True, prog="hf-distill sweep", usage="")

    def read_value(name: str, raw: Any) -> Value:
        """Read a value as a training does, if there is such an option and it can be searched."""
        words = list(parser.words_of({**options, "output_dir": ".", name: raw}, "search_space"))
        value: Any = None if raw is None else parser.given(words)[name]
        if name == "teacher_model" and value is not None and not isinstance(raw, list):
            (value,) = value  # one teacher per trial
        if isinstance(value, list | dict):
            raise ValueError(f"search_space: {name} takes a list, which cannot be searched.")
        reason = why_not_searched(name, cached=cached, seeds=arguments.seeds is not None)
        if reason is not None:
            raise ValueError(f"search_space: {name} cannot be searched: {reason}.")
        return value

    space = read_search_space(_content(arguments.search_space), read_value)
    sampler = arguments.sampler or ("tpe" if space.size is None else "grid")
    plan = SweepPlan(
        options={name: value for name, value in options.items() if name not in space.options},
        space=space,
        sampler=sampler,
        n_trials=_number_of_trials(arguments.n_trials, sampler, space),
        metric=None if arguments.metric is None else arguments.metric.removeprefix("eval_"),
        seeds=_seeds(arguments.seeds, int(options.get("seed", 42))),
        output_dir=output_dir,
        keep_all_trials=arguments.keep_all_trials,
        makes_cache=makes_cache,
        overwrite=overwrite,
        parser=parser,
    )
    if makes_cache and options.get("teacher_attn_implementation") is not None:
        raise ValueError(
            "--teacher_attn_implementation is for a teacher that runs; leave it out, or add "
            "--live_teacher."
        )
    _check_combinations(plan)
    return plan


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("resume", "resume_from_checkpoint"):
        if options.get(name):
            raise ValueError(f"a sweep resumes by itself; leave --{name} out.")
    if options.get("push_to_hub"):
        raise ValueError("a sweep pushes nothing to the Hub; leave --push_to_hub out.")
    if options.get("stage") == "intermediate":
        raise ValueError(
            "--stage intermediate has no score to search by; have both stages in a trial "
            "(--intermediate_epochs)."
        )
    scored = options.get("validation_file") is not None
    if options.get("dataset_name") is not None:
        scored = options.get("validation_split") != "none"
    if not scored:
        raise ValueError("a sweep needs data to score on: pass --validation_file.")


def _content(search_space: Any) -> Any:
    if search_space is None:
        raise ValueError(
            "there is nothing to search; write the options to search under `search_space:` in "
            "the --config file."
        )
    if not isinstance(search_space, str):
        return search_space
    try:
        return load_yaml(search_space)
    except ValueError as error:
        raise ValueError(f"--search_space cannot be read: {error}") from None


def _number_of_trials(wanted: int | None, sampler: str, space: SearchSpace) -> int:
    if sampler == "grid":
        space.combinations()  # which refuses what has no end
    if wanted is not None and wanted < 1:
        raise ValueError(f"--n_trials {wanted} must be at least 1.")
    if wanted is None and sampler != "grid":
        wanted = _TRIALS
    numbers = [number for number in (wanted, space.size) if number is not None]
    return min(numbers)


def _seeds(seeds: Sequence[int] | None, seed: int) -> tuple[int, ...]:
    if seeds is None:
        return (seed,)
    for one in seeds:
        if one < 0:
            raise ValueError(f"--seeds {one} must be 0 or more.")
        if seeds.count(one) > 1:
            raise ValueError(f"--seeds has {one} twice.")
    return tuple(seeds)


def _check_combinations(plan: SweepPlan) -> None:
    """Refuse a combination that a training would refuse."""
    corners = itertools.islice(plan.space.corners(), _MOST_CHECKED)
    for parameters in itertools.chain(plan.space.one_by_one(), corners):
        options = plan.trial_options(parameters, plan.seeds[0])
        try:
            if plan.makes_cache:
                _check_layers(options)
            plan.request(options, plan.output_dir)
        except ValueError as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in parameters.items())
            raise ValueError(f"search_space: with {shown}: {error}") from None


def _check_layers(options: Mapping[str, Any]) -> None:
    for name in _OF_LAYERS:
        if options.get(name):
            raise ValueError(
                f"--{name} {options[name]} needs the teacher itself, and not its stored outputs; "
                "add --live_teacher."
            )


def _without_path(value: Any) -> Any:
    """Return a value without anything about the machine."""
    if isinstance(value, list):
        return [_without_path(one) for one in value]
    if isinstance(value, str) and (os.sep in value or value.startswith("~")):
        return display_name(value)
    return value
