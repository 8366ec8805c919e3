"""The plan of ``hf-distill shrink``: looks at teacher, data and machine, and decides once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_distill._version import __version__
from hf_distill.cli.arguments import HubDataArguments
from hf_distill.cli.loading import (
    check_model_source,
    check_paths,
    choose_task,
    load_examples,
    load_tokenizer,
    load_trained_model,
)
from hf_distill.cli.precision import bfloat16_pays
from hf_distill.cli.run_folder import make_output_folder
from hf_distill.cli.shrink import ShrinkArguments, ShrinkTrainingArguments
from hf_distill.cli.train_arguments import TrainDataArguments, TrainingFileArguments
from hf_distill.exporting.onnx import require_packages
from hf_distill.extras import MissingExtraError
from hf_distill.files import content_hash, differences, display_name, read_json, write_json
from hf_distill.loading import read_config
from hf_distill.onnx_model import exportable_kind
from hf_distill.reports.report import Decision
from hf_distill.shrinking.plan import (
    Asked,
    Data,
    Further,
    Measured,
    Plan,
    check_asked,
    decide,
    defaults_of,
    read_budget,
    share_of_hidden_states,
)
from hf_distill.shrinking.shapes import Target, Timed, candidate_shapes, choose_shape
from hf_distill.shrinking.workbench import Workbench
from hf_distill.tasks.base import Task
from hf_distill.tasks.errors import MissingLabelsError
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.tables import evenly_spaced

PLAN_FILE = "shrink.json"
_CALIBRATION_ROWS = 2048
_HELD_OUT = 64
_NOT_OF_THE_PLAN = (
    "output_dir", "dry_run", "overwrite_output_dir", "config", "push_to_hub", "hub_model_id",
    "private",
)  # fmt: skip
_AUGMENTED: dict[str, tuple[str, ...]] = {
    "question-answering": (),
    "text-classification": ("text_column",),
    "token-classification": ("text_column", "label_column"),
}
"""Tasks whose texts can be augmented, and the options that name the columns."""
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_USUAL_SPEEDUP = 2.0
DISTANCES = {None: "KL", "kl_div": "KL", "mse": "squared error"}
"""By the loss: of an untrained student from its teacher."""


@dataclass(frozen=True)
class ShrinkRequest:
    """The options of one call."""

    arguments: ShrinkArguments
    training: ShrinkTrainingArguments
    data: TrainDataArguments
    options: TaskArguments

    @property
    def folder(self) -> Path:
        return Path(self.arguments.output_dir).expanduser()

    @cached_property
    def teacher(self) -> str:
        return check_model_source("teacher_model", self.arguments.teacher_model)

    @cached_property
    def task(self) -> Task:
        return choose_task(self.arguments.task, self.options, {"teacher_model": self.teacher})

    @cached_property
    def asked(self) -> Asked:
        """What is set by hand of the trainings."""
        own, training = self.training, asdict(self.training)
        shared = {f.name: training[f.name] for f in fields(Asked) if f.name in training}
        shared["budget"] = None if own.budget is None else read_budget(own.budget)
        return Asked(
            **shared, batch_size=own.per_device_train_batch_size, cache=own.cache_teacher_outputs
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Return the sizes that are set by hand."""
        given = {name: getattr(self.arguments, name) for name in _SIZES}
        return {name: size for name, size in given.items() if size is not None}

    @cached_property
    def target(self) -> Target:
        arguments = self.arguments
        bounds = (arguments.speedup, arguments.max_parameters, arguments.max_size_mb)
        if bounds == (None, None, None) and not self.sizes:
            return Target(speedup=_USUAL_SPEEDUP)
        return Target(*bounds)

    @cached_property
    def described(self) -> dict[str, Any]:
        """The settings that another run in the same folder must share, without paths."""
        parts: list[Any] = [self.arguments, self.training, self.data, self.options]
        values = {name: value for part in parts for name, value in asdict(part).items()}
        sources = ("teacher_model", "train_file", "validation_file")
        hashes = {
            f"content of {name}": content_hash(values[name]) for name in sources if values[name]
        }
        for name in (*sources, "augment_model"):
            values[name] = values[name] and display_name(values[name])
        kept = {
            name: value
            for name, value in values.items()
            if value is not None and name not in _NOT_OF_THE_PLAN
        }
        return kept | hashes

    @cached_property
    def can_be_exported(self) -> bool:
        """Return whether exports are wanted of a student that there is an exporter for."""
        config = read_config(self.teacher, "--teacher_model")
        try:
            exportable_kind((config.architectures or [""])[0])
        except ValueError:
            return False
        return self.arguments.export

    @property
    def on_accelerator(self) -> bool:
        return torch.accelerator.is_available() and not self.training.use_cpu

    @cached_property
    def train_options(self) -> dict[str, Any]:
        """Return the options that name the training data."""
        return _given(self.data, TrainingFileArguments)

    @cached_property
    def validation_options(self) -> dict[str, Any] | None:
        """Return the options that name the validation data; ``None`` without any."""
        if self.data.validation is None:
            return None
        own = {"validation_file", "validation_split", "max_eval_samples"}
        of_hub = _given(self.data, HubDataArguments)
        return of_hub | {n: v for n, v in _given(self.data, TrainDataArguments).items() if n in own}

    @cached_property
    def task_options(self) -> dict[str, Any]:
        """Return the options of the task, and its name."""
        return {"task": self.task.name, **_given(self.options, TaskArguments)}

    def check(self) -> None:
        """Check what the options alone determine, and that the files are there.

        Raises:
            ValueError: names the option.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "shrink times models in one process, but WORLD_SIZE="
                f"{os.environ['WORLD_SIZE']} processes were launched; run it as `hf-distill shrink "
                "…`, or with --dry_run, and the commands of its report on several processes."
            )
        data = self.data
        if (data.train_file is None) == (data.dataset_name is None):
            raise ValueError("name the training data: either --train_file or --dataset_name.")
        for name in ("speedup", "max_parameters", "max_size_mb"):
            value = getattr(self.arguments, name)
            if value is not None and not value > (1 if name == "speedup" else 0):
                least = "above 1" if name == "speedup" else "above 0"
                raise ValueError(f"--{name} {value:g} must be {least}.")
        check_asked(self.asked)
        self._check_augmentation()
        check_paths({n: getattr(data, n) for n in ("train_file", "validation_file")})
        self._check_folder()
        if self.can_be_exported:
            try:
                require_packages()
            except MissingExtraError as error:
                raise MissingExtraError(f"{error}, or leave the export out (--no_export)") from None
        make_output_folder(self.folder)

    def _check_folder(self) -> None:
        """Check that nothing is deleted which no earlier plan has left there."""
        folder = self.folder.resolve()
        for part in (self.arguments, self.data):
            for name in ("teacher_model", "augment_model", "train_file", "validation_file"):
                source = getattr(part, name, None)
                path = Path(source or "").expanduser().resolve()
                if source and path.exists() and path.is_relative_to(folder):
                    raise ValueError(
                        f"--{name} {source} is in --output_dir {self.folder}, where everything "
                        "is written; name another folder."
                    )
        if self.arguments.overwrite_output_dir and self.arguments.dry_run:
            raise ValueError(
                "--dry_run with --overwrite_output_dir would delete a student and make none: name "
                "another --output_dir."
            )

    def _check_augmentation(self) -> None:
        versions, data, options = self.arguments.augment, self.data, self.options
        if versions is None:
            if self.arguments.augment_model is not None:
                raise ValueError("--augment_model needs --augment.")
            return
        if versions < 2:
            raise ValueError(f"--augment {versions} must be at least 2.")
        if data.train_file is None or data.max_train_samples is not None:
            raise ValueError(
                f"--augment {versions} augments a whole file: pass --train_file, without "
                "--max_train_samples."
            )
        if self.task.name not in _AUGMENTED:
            raise ValueError(
                f"--augment {versions} is for {', '.join(_AUGMENTED)}, not for {self.task.name}."
            )
        needed = _AUGMENTED[self.task.name]
        for name in needed:
            if getattr(options, name) is None:
                raise ValueError(f"--augment {versions} needs --{name}.")


def _given(arguments: Any, of: type) -> dict[str, Any]:
    """Return the options of a dataclass that differ from their defaults."""
    return {
        f.name: getattr(arguments, f.name)
        for f in fields(of)
        if getattr(arguments, f.name) != f.default
    }


def read_or_make_plan(request: ShrinkRequest, *, fresh: bool = False) -> Plan:
    """Return the plan in the folder, or make it and write it there; ``fresh``: there is none.

    Raises:
        ValueError: the folder holds a plan with other settings that was begun, or no plan can be
            made.
    """
    file = request.folder / PLAN_FILE
    plan = None if fresh else _read(request, file)
    if plan is None:
        plan = make_plan(request)
        write_plan(request, plan)
    return plan


def write_plan(request: ShrinkRequest, plan: Plan, **results: Any) -> None:
    """Write the plan and what came of it so far."""
    content = {
        "hf_distill_version": __version__,
        "settings": request.described,
        "plan": plan.to_json(),
        **results,
    }
    write_json(request.folder / PLAN_FILE, content)


def _read(request: ShrinkRequest, file: Path) -> Plan | None:
    remedy = "choose another --output_dir, or begin again with --overwrite_output_dir"
    if not file.exists():
        paths = request.folder.iterdir()
        strangers = sorted(path.name for path in paths if not path.name.startswith("."))
        if strangers:
            raise ValueError(
                f"--output_dir {request.folder} holds other files ({', '.join(strangers[:3])}) and "
                f"no {PLAN_FILE}; name a new folder."
            )
        return None
    content = read_json(file, remedy)
    if "settings" not in content or "plan" not in content:
        raise ValueError(f"{file} is not a plan of hf-distill shrink; {remedy}.")
    changed = differences(content["settings"], request.described)
    if not changed:
        try:
            return Plan.from_json(content["plan"])
        except ValueError as error:
            raise ValueError(f"{file}: {error}; {remedy}.") from error
    if [path for path in request.folder.iterdir() if path.is_dir()]:
        raise ValueError(
            f"--output_dir {request.folder} was begun with other settings: {'; '.join(changed)}. "
            f"Give the same ones to continue, or {remedy}."
        )
    return None


def make_plan(request: ShrinkRequest) -> Plan:
    """Look at teacher, data and machine, and decide."""
    task, training, data = request.task, request.training, request.data
    tokenizer = load_tokenizer("teacher_model", request.teacher)
    teacher: Any = load_trained_model("teacher_model", request.teacher, task, exported=False)
    precision = "bf16" if _uses_bfloat16(request) else None
    examples, labelled = load_examples(
        task, data.training._replace(max_samples=data.max_train_samples), or_unlabelled=True
    )
    if not labelled and task.reads_targets:
        raise ValueError(
            "--train_file: the data has no targets; `hf-distill train --distillation_loss_weight 1 "
            "--teacher_model …` lets the teacher write them."
        )
    if not labelled and request.arguments.baseline:
        raise ValueError(
            "--baseline trains a student on labels alone, and the training data has none: leave it "
            "out, or pass labelled data."
        )
    validation = None if data.validation is None else _validation_rows(request)

    def encode(rows: Any, *, training: bool, labelled: bool) -> Any:
        return task.features(
            rows,
            tokenizer,
            teacher,
            training=training,
            labelled=labelled,
            num_proc=data.preprocessing_num_workers,
        ).features

    # What a student is made on is not what it is compared on.
    most = len(examples) - (_HELD_OUT if validation is None else 0)
    held_out = examples if validation is None else validation
    shuffled = examples.shuffle(seed=training.seed)
    if validation is None and most >= _HELD_OUT:
        held_out = shuffled.select(range(most, len(examples)))
    few = shuffled.select(range(max(1, min(_CALIBRATION_ROWS, max(most, len(examples) // 2)))))
    targets = task.reads_targets
    bench = Workbench(
        task,
        teacher.to(torch.accelerator.current_accelerator() if request.on_accelerator else "cpu"),
        tokenizer,
        held_out,
        encode(few, training=True, labelled=targets),
        encode(evenly_spaced(held_out, _HELD_OUT), training=True, labelled=targets),
        seed=training.seed,
        batch_size=request.asked.batch_size or defaults_of(task.name).batch_size,
        precision=precision,
        use_cpu=not request.on_accelerator,
    )
    candidates = candidate_shapes(
        teacher, bench.length(), request.sizes, search=request.target != Target()
    )
    samples = training.teacher_check_samples
    if (validation is not None or labelled) and samples and candidates.shapes:
        tried = encode(evenly_spaced(held_out, samples), training=True, labelled=True)
        bench.check_teacher(candidates.shapes[-1], tried, samples)
    sys.stderr.write("Timing shapes of a student …\n")
    _warn_of_other_work()
    best, table = choose_shape(
        candidates,
        request.target,
        bench.time_shapes,
        lambda shape: bench.divergence(shape, candidates.teacher),
    )
    sys.stderr.write("Timing steps …\n")
    shows_hidden_states = share_of_hidden_states(task.name, request.asked) > 0
    measured = Measured(
        bench.step_seconds(best.shape, "intermediate") if shows_hidden_states else 0.0,
        bench.step_seconds(best.shape, "prediction"),
        bench.teacher_seconds(),
        bench.seconds_to_create[best.shape],
    )
    versions = request.arguments.augment or 1
    sizes = Data(
        train=round(len(bench.features) / len(few) * len(examples)) * versions,
        validation=0 if validation is None else len(validation),
        labelled=labelled,
        loss=bench.loss,
    )
    if validation is not None:
        few = evenly_spaced(validation, _HELD_OUT)
        scored = encode(few, training=False, labelled=True)
        measures = task.scorer(few, scored, tokenizer, teacher).measures
        metric = next(iter(measures.quality))
        lower = metric in measures.lower_is_better
        sizes = replace(sizes, metric=metric, lower_is_better=lower)
    exports = int(request.can_be_exported) * (1 if data.validation_file is None else 2)
    further = Further(request.arguments.baseline, exports)
    decisions, seconds = decide(task.name, request.asked, sizes, measured, best, further)
    by = "set by hand" if training.bf16 is not None else "by a timed product of matrices"
    decisions = [
        Decision("shape", str(best.shape), _why(request, best, table, bench.loss)),
        *decisions,
        Decision("bf16", precision == "bf16", by),
    ]
    if sizes.metric is not None:
        decisions.append(Decision("metric", sizes.metric, f"the first metric of {task.name}"))
        better = "lower" if sizes.lower_is_better else "higher"
        decisions.append(Decision("better", better, "a property of the metric"))
    return Plan(
        task=task.name,
        teacher=candidates.teacher,
        shape=best.shape,
        speedup=best.speedup,
        decisions={one.name: one for one in decisions},
        table=table,
        seconds=seconds,
    )


def _warn_of_other_work() -> None:
    """Warn where what is timed would be timed beside other work."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load > cores + 1:
        sys.stderr.write(
            f"This machine is busy (load {load:.1f} on {cores} cores), so the times that a shape "
            "is chosen by are not those of an idle one. Stop other work and make the plan again "
            "(--overwrite_output_dir), or name the shape (--num_hidden_layers, --hidden_size).\n"
        )


def _validation_rows(request: ShrinkRequest) -> Any:
    assert request.data.validation is not None
    try:
        return load_examples(request.task, request.data.validation)[0]
    except MissingLabelsError as error:
        raise ValueError(
            f"The validation data has no labels to score by. {error} Or leave it out (without "
            "--validation_file; --validation_split none)."
        ) from error


def _uses_bfloat16(request: ShrinkRequest) -> bool:
    wanted = request.training.bf16
    if wanted is None:
        # bfloat16_pays measures an accelerator if there is one.
        return bfloat16_pays() and request.on_accelerator == torch.accelerator.is_available()
    return wanted


def _why(request: ShrinkRequest, best: Timed, table: Sequence[Timed], loss: str) -> str:
    """Explain the choice of a shape."""
    made = [one for one in table if one.divergence is not None]
    parts = [f"{name} {value} set by hand" for name, value in request.sizes.items()]
    if request.target.speedup is not None:
        parts.append(
            f"{best.speedup:.2f} times as fast as the teacher ({best.milliseconds:.1f} against "
            f"{best.teacher_milliseconds:.1f} ms)"
        )
    if len(made) > 1:
        parts.append(
            f"of {len(made)} untrained students the nearest to the teacher "
            f"({DISTANCES[loss]} {best.divergence:.3f})"
        )
    left_out = [one for one in table if one.left_out is not None]
    if left_out:
        parts.append(f"{len(left_out)} others cannot be made here: {left_out[0].left_out}")
    return "; ".join(parts)
