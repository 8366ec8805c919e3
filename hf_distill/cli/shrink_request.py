"""The options of ``hf-distill shrink``, and what they alone determine."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hf_distill.augmentation.options import AugmentationOptions
from hf_distill.cli.arguments import HubDataArguments
from hf_distill.cli.loading import check_model_source, check_paths, choose_task
from hf_distill.cli.run_folder import check_sources, make_output_folder
from hf_distill.cli.shrink import USUAL_TOLERANCE, ShrinkArguments, ShrinkTrainingArguments
from hf_distill.cli.train_arguments import TrainDataArguments, TrainingFileArguments
from hf_distill.exporting.onnx import require_packages
from hf_distill.extras import MissingExtraError
from hf_distill.files import content_hash, display_name
from hf_distill.loading import read_config
from hf_distill.onnx_model import exportable_kind
from hf_distill.shrinking.plan import Asked, check_asked, read_budget
from hf_distill.shrinking.shapes import Target
from hf_distill.tasks.base import Task
from hf_distill.tasks.options import TaskArguments

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
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_USUAL_SPEEDUP = 2.0


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

    @property
    def is_begun(self) -> bool:
        """Return whether a step has left something in the folder; a plan alone has not."""
        return self.folder.is_dir() and any(path.is_dir() for path in self.folder.iterdir())

    @cached_property
    def teacher(self) -> str:
        return check_model_source("teacher_model", self.arguments.teacher_model)

    @cached_property
    def task(self) -> Task:
        return choose_task(self.arguments.task, self.options, {"teacher_model": self.teacher})

    @cached_property
    def asked(self) -> Asked:
        """Return the settings of the trainings that are set by hand."""
        own, training = self.training, asdict(self.training)
        shared = {f.name: training[f.name] for f in fields(Asked) if f.name in training}
        shared["budget"] = None if own.budget is None else read_budget(own.budget)
        return Asked(
            **shared, batch_size=own.per_device_train_batch_size, cache=own.cache_teacher_outputs
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Return the sizes that are set by hand."""
        given = {name: getattr(self.arguments, name) for name in SIZES}
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
        """Return the settings that another run in the same folder must share, without paths."""
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
        if data.dataset_name is not None and data.validation_file is not None:
            raise ValueError(
                "--validation_file goes with --train_file; with --dataset_name choose a split of "
                "it (--validation_split)."
            )
        data.check()
        for name in ("speedup", "max_parameters", "max_size_mb"):
            value = getattr(self.arguments, name)
            if value is not None and not value > (1 if name == "speedup" else 0):
                least = "above 1" if name == "speedup" else "above 0"
                raise ValueError(f"--{name} {value:g} must be {least}.")
        check_asked(self.asked)
        self._check_augmentation()
        check_paths({n: getattr(data, n) for n in ("train_file", "validation_file")})
        self._check_folder()
        tolerance = self.arguments.tolerance
        is_quantized = self.can_be_exported and data.validation_file is not None
        if tolerance != USUAL_TOLERANCE and not is_quantized:
            raise ValueError(
                f"--tolerance {tolerance:g} is for the export with 8-bit weights, and there will "
                "be none: it needs a --validation_file, a model that can be exported, and no "
                "--no_export. Leave --tolerance out."
            )
        if self.can_be_exported:
            try:
                require_packages()
            except MissingExtraError as error:
                raise MissingExtraError(f"{error}, or leave the export out (--no_export)") from None
        make_output_folder(self.folder)

    def _check_folder(self) -> None:
        """Check that nothing is deleted which no earlier plan has left there."""
        names = ("teacher_model", "augment_model", "train_file", "validation_file")
        given = {**vars(self.data), **vars(self.arguments)}
        check_sources(self.folder, {name: given.get(name) for name in names})
        if self.arguments.overwrite_output_dir and self.arguments.dry_run and self.is_begun:
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
        model = self.arguments.augment_model or AugmentationOptions().model
        read_config(check_model_source("augment_model", model), "--augment_model")


def _given(arguments: Any, of: type) -> dict[str, Any]:
    """Return the options of a dataclass that differ from their defaults."""
    return {
        f.name: getattr(arguments, f.name)
        for f in fields(of)
        if getattr(arguments, f.name) != f.default
    }
