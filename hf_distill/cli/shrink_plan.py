"""The plan of ``hf-distill shrink``: looks at teacher, data and machine, and decides once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hf_distill._version import __version__
from hf_distill.cli.arguments import DataSource
from hf_distill.cli.loading import load_examples, load_tokenizer, load_trained_model, naming
from hf_distill.cli.precision import bfloat16_pays
from hf_distill.cli.run_folder import PLAN_FILE, check_strangers
from hf_distill.cli.shrink_request import SIZES, ShrinkRequest
from hf_distill.cli.sweep_arguments import SWEEP_PACKAGES
from hf_distill.files import differences, read_json, write_json
from hf_distill.loading import read_config
from hf_distill.reports.measurements import other_work
from hf_distill.reports.report import Decision
from hf_distill.shrinking.decisions import decide, settings_of
from hf_distill.shrinking.plan import Data, Further, Measured, Plan
from hf_distill.shrinking.shapes import Shape, Target, Timed, candidate_shapes, choose_shape
from hf_distill.shrinking.workbench import Workbench
from hf_distill.tasks.errors import MissingLabelsError
from hf_distill.tasks.tables import evenly_spaced

_CALIBRATION_ROWS = 2048
_HELD_OUT = 64
DISTANCES = {None: "KL", "kl_div": "KL", "mse": "squared error"}
"""By the loss: of an untrained student from its teacher."""


def read_or_make_plan(request: ShrinkRequest, clear: Callable[[Path], None] | None = None) -> Plan:
    """Return the plan in the folder, or make it and write it there.

    Args:
        request: what was asked for.
        clear: deletes what an earlier plan has left in the folder, which is kept if no new plan can
            be made; ``None`` continues with the earlier plan.

    Raises:
        ValueError: the folder holds a plan with other settings that was begun, or no plan can be
            made.
    """
    plan = _read(request, request.folder / PLAN_FILE) if clear is None else None
    if plan is None:
        plan = make_plan(request)
        if clear is not None:
            clear(request.folder)
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
    check_strangers(request.folder, PLAN_FILE)
    if not file.exists():
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
    if request.is_begun:
        raise ValueError(
            f"--output_dir {request.folder} was begun with other settings: {'; '.join(changed)}. "
            f"Give the same ones to continue, or {remedy}."
        )
    return None


def make_plan(request: ShrinkRequest) -> Plan:
    """Look at teacher, data and machine, and decide."""
    task, training, data = request.task, request.training, request.data
    sys.stderr.write(f"Task: {task.name}, {_source_of_task(request)}.\n")
    tokenizer = load_tokenizer("teacher_model", request.teacher)
    teacher: Any = load_trained_model("teacher_model", request.teacher, task, exported=False)
    precision = "bf16" if _uses_bfloat16(request) else None
    examples, labelled = load_examples(task, data.training, or_unlabelled=True)
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
    if labelled:  # as `train` will: it needs all rows for that
        with naming(data.training):
            task.model_options(teacher.config, teacher.config, examples)
            task.label_counts(examples, teacher)
    if data.max_train_samples is not None:
        examples = evenly_spaced(examples, data.max_train_samples)
    validation = None if data.validation is None else _validation_rows(request, teacher)
    held_out_source = data.validation or data.training

    def encode(rows: Any, source: DataSource, *, training: bool, labelled: bool) -> Any:
        with naming(source):
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
    targets, settings = task.reads_targets, settings_of(task.name, request.asked)
    bench = Workbench(
        task,
        teacher.to(torch.accelerator.current_accelerator() if request.on_accelerator else "cpu"),
        tokenizer,
        held_out,
        encode(few, data.training, training=True, labelled=targets),
        encode(
            evenly_spaced(held_out, _HELD_OUT), held_out_source, training=True, labelled=targets
        ),
        seed=training.seed,
        batch_size=settings.batch_size,
        dropout=settings.dropout,
        precision=precision,
        use_cpu=not request.on_accelerator,
    )
    candidates = candidate_shapes(
        teacher, bench.length(), request.sizes, search=request.target != Target()
    )
    samples = training.teacher_check_samples
    if (validation is not None or labelled) and samples and candidates.shapes:
        rows = evenly_spaced(held_out, samples)
        sys.stderr.write("Trying the teacher …\n")
        tried = encode(rows, held_out_source, training=True, labelled=True)
        bench.check_teacher(candidates.shapes[-1], tried, samples)
    busy = other_work()
    if busy is not None:
        _warn_of_other_work(request, busy)

    def time_shapes(shapes: Sequence[Shape]) -> dict[Shape, tuple[float, float]]:
        what = "a shape" if len(shapes) == 1 else f"{len(shapes)} shapes"
        sys.stderr.write(f"Timing {what} of a student …\n")
        return bench.time_shapes(shapes)

    def divergence(shape: Shape) -> float:
        sys.stderr.write(f"Making a student of {shape} to compare it with the teacher …\n")
        return bench.divergence(shape, candidates.teacher)

    best, table = choose_shape(candidates, request.target, time_shapes, divergence)
    shows_hidden_states = settings.hidden_states_share > 0
    times = bench.step_times(best.shape, "prediction")
    measured = Measured(
        bench.step_times(best.shape, "intermediate").step if shows_hidden_states else 0.0,
        times.step,
        times.teacher,
        bench.seconds_to_create[best.shape],
        bench.filled(),
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
        scored = encode(few, held_out_source, training=False, labelled=True)
        measures = task.scorer(few, scored, tokenizer, teacher).measures
        metric = next(iter(measures.quality))
        lower = metric in measures.lower_is_better
        sizes = replace(sizes, metric=metric, lower_is_better=lower)
    exports = int(request.can_be_exported) * (1 if data.validation_file is None else 2)
    searches = all(find_spec(package) for package in SWEEP_PACKAGES)
    further = Further(request.arguments.baseline, exports, can_search=searches)
    decisions, seconds = decide(task.name, request.asked, sizes, measured, best, further)
    by = "set by --bf16" if training.bf16 is not None else "by a timed product of matrices"
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
        busy=busy,
        teacher_parameters=candidates.parameters[candidates.teacher],
    )


def _source_of_task(request: ShrinkRequest) -> str:
    if request.arguments.task is not None:
        return "by --task"
    config = read_config(request.teacher, "--teacher_model")
    return f"as the teacher is a {(config.architectures or [''])[0]} (--task names another)"


def _warn_of_other_work(request: ShrinkRequest, load: str) -> None:
    """Warn that what is timed is timed next to other work, and what can be done about it."""
    again = "Stop other work and make the plan again (--overwrite_output_dir)"
    what, remedy = "times that are predicted", again
    open_sizes = [f"--{name}" for name in SIZES if name not in request.sizes]
    if request.target.speedup is not None and open_sizes:
        what = "times that a shape is chosen by"
        remedy = f"{again}, or name the shape as well ({', '.join(open_sizes)})"
    sys.stderr.write(
        f"This machine is busy ({load}), so the {what} are not those of an idle one. {remedy}.\n"
    )


def _validation_rows(request: ShrinkRequest, teacher: Any) -> Any:
    source = request.data.validation
    assert source is not None
    try:
        rows, _ = load_examples(request.task, source)
    except MissingLabelsError as error:
        raise ValueError(
            f"The validation data has no labels to score by. {error} Or leave it out (without "
            "--validation_file; --validation_split none)."
        ) from error
    with naming(source):
        request.task.label_counts(rows, teacher)
    return rows


def _uses_bfloat16(request: ShrinkRequest) -> bool:
    wanted = request.training.bf16
    if wanted is None:
        # bfloat16_pays measures an accelerator if there is one.
        return bfloat16_pays() and request.on_accelerator == torch.accelerator.is_available()
    return wanted


def _why(request: ShrinkRequest, best: Timed, table: Sequence[Timed], loss: str) -> str:
    """Explain the choice of a shape."""
    made = [one for one in table if one.divergence is not None]
    parts = [f"{name} {value} set by --{name}" for name, value in request.sizes.items()]
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
