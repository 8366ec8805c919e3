"""The single commands that a plan consists of, as a user would type them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_distill.files import display_name
from hf_distill.shrinking.decisions import EXPORT_ROWS, SCORINGS
from hf_distill.shrinking.plan import Plan

AUGMENTED, CREATED, OUTPUTS = "augmented", "created", "teacher_outputs"
SEARCH, STUDENT, ALONE = "search", "student", "student_alone"
ONNX, INT8, COMPARISON = "onnx", "int8", "comparison"
_PATHS = frozenset(
    ("output_dir", "teacher", "model", "student_model", "teacher_model", "teacher_outputs",
     "train_file", "validation_file", "calibration_file", "file", "student_alone",
     "student_distilled", "models", "squad_path", "output_path")
)  # fmt: skip
_WARM_UP = 0.1
_EVAL_BATCH = 32


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: of the command, after ``hf-distill``.
        options: by name; ``None`` is not given.
        positional: what comes before them.
        folder: where it writes, in the folder of the plan.
        result: the file there that it writes last.
        resumes: whether it continues by itself where it was interrupted.
        may_fail: whether the rest of the plan does without it.
        needs: the folder of a command without whose result it cannot succeed.
    """

    name: str
    folder: str
    result: str
    options: Mapping[str, Any]
    positional: tuple[str, ...] = ()
    resumes: bool = False
    may_fail: bool = False
    needs: str | None = None

    def shown(self, root: Path) -> str:
        """Return the command for a report: without anything about the machine.

        Paths are as they were given if they are relative, and else their last part, which for
        what is in ``root``, the folder of the plan, begins with its name.
        """
        words = ["hf-distill", self.name, *(_shown(one, root) for one in self.positional)]
        for name, value in self.options.items():
            if value is None or value is False:
                continue
            words.append(f"--{name}")
            if value is not True:
                values = value if isinstance(value, list) else [value]
                words += [_shown(v, root) if name in _PATHS else str(v) for v in values]
        return shlex.join(words)


def _shown(value: str, root: Path) -> str:
    path = Path(value).expanduser()
    if not path.is_absolute():
        return value
    if path.is_relative_to(root):
        return (root.name / path.relative_to(root)).as_posix()
    return display_name(path)


@dataclass(frozen=True)
class PlanCommands:
    """The commands of a plan.

    Attributes:
        plan: the decisions.
        folder: where the results go.
        teacher: the teacher.
        train: the options that name the training data, as ``train`` takes them.
        validation: those that name the validation data; ``None`` without any.
        task: the options of the task, its name included.
        seed: of student and trainings.
        use_cpu: leave an accelerator unused.
        teacher_check_samples: rows that the teacher is tried on.
        baseline: also train the student on labels alone.
        exports: also export the student.
        tolerance: points that an 8-bit export may lose.
        augment: versions of each training text, the original included; the file of ``train`` is
            augmented.
        augment_model: the masked language model that proposes words; by default that of
            ``hf-distill augment``.
    """

    plan: Plan
    folder: Path
    teacher: str
    train: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    task: Mapping[str, Any]
    seed: int
    use_cpu: bool
    teacher_check_samples: int | None = None
    baseline: bool = False
    exports: bool = True
    tolerance: float = 1.0
    augment: int | None = None
    augment_model: str | None = None

    def in_order(self) -> list[Command]:
        """Return the commands in their order."""
        made = [self._creation()]
        train = self.train
        if self.augment is not None:
            made.append(self._augmentation(self.augment))
            train = {**train, "train_file": made[-1].options["output_path"]}
        if self.plan["cache_teacher_outputs"]:
            made.append(self._cache(train))
        trainings = self._trainings(train)
        if self.plan.get("search"):
            made.append(self._search(trainings[0]))
        made += trainings
        if self.exports:
            made += self._exports()
        if self.validation is not None:
            exported = [one.options["output_dir"] for one in made if one.name == "export"]
            made.append(self._comparison(self.validation, exported))
        return made

    def _creation(self) -> Command:
        sizes = self.plan.shape.options(self.plan.teacher)
        options: dict[str, Any] = {**sizes, "dropout": self.plan["dropout"], "seed": self.seed}
        if sizes.keys() - {"num_hidden_layers"}:
            names = {"train_file": "calibration_file", "train_split": "split"}
            options |= {
                names.get(name, name): value
                for name, value in self.train.items()
                if name != "max_train_samples"
            }
            options |= self.task
        options["output_dir"] = str(self.folder / CREATED)
        return Command("create-student", CREATED, "student.json", options, (self.teacher,))

    def _augmentation(self, versions: int) -> Command:
        task, source = self.task, str(self.train["train_file"])
        options: dict[str, Any] = {"squad_path": source}
        if task["task"] != "question-answering":
            columns = [task.get("text_column"), task.get("text_pair_column")]
            tags = task.get("label_column") if task["task"] == "token-classification" else None
            options = {
                "train_file": source,
                "text_columns": [column for column in columns if column is not None],
                "tag_column": tags,
            }
        name = Path(source).name
        options |= {
            "multiplication_factor": versions,
            "model": self.augment_model,
            "seed": self.seed,
            "output_path": str(self.folder / AUGMENTED / name),
        }
        return Command("augment", AUGMENTED, name, options)

    def _cache(self, train: Mapping[str, Any]) -> Command:
        options = {
            "teacher_model": [self.teacher],
            **train,
            **self.task,
            "mixed_precision": "bf16" if self.plan["bf16"] else None,
            "use_cpu": self.use_cpu,
            "output_dir": str(self.folder / OUTPUTS),
        }
        return Command("cache", OUTPUTS, "manifest.json", options, resumes=True)

    def _trainings(self, train: Mapping[str, Any]) -> list[Command]:
        plan, shared = self.plan, self._shared(train)
        first, cached = plan["hidden_states_steps"], plan["cache_teacher_outputs"]
        trainings = {
            STUDENT: {
                "teacher_model": [self.teacher] if first or not cached else None,
                "teacher_outputs": str(self.folder / OUTPUTS) if cached else None,
                "intermediate_max_steps": first or None,
                "max_steps": plan["prediction_steps"],
                "distillation_loss": plan.get("distillation_loss"),
                "temperature": plan.get("temperature"),
                "distillation_loss_weight": plan["distillation_loss_weight"],
                "teacher_check_samples": self.teacher_check_samples,
                "eval_with_teacher": "no",
            }
        }
        if self.baseline:
            trainings[ALONE] = {"baseline": True, "max_steps": first + plan["prediction_steps"]}
        return [
            Command(
                "train",
                name,
                "metrics.json",
                {**shared, **own, "output_dir": str(self.folder / name), "resume": True},
                resumes=True,
            )
            for name, own in trainings.items()
        ]

    def _search(self, training: Command) -> Command:
        """Return the sweep of the settings of a training."""
        plan, searched = self.plan, self.plan["search"]
        every = max(1, plan["search_steps"] // SCORINGS)
        options = {
            **{
                name: v for name, v in training.options.items() if name not in {*searched, "resume"}
            },
            "max_steps": plan["search_steps"],
            "save_steps": every,
            "eval_steps": every,
            "metric": plan["metric"],
            "search_space": yaml.safe_dump(searched, default_flow_style=True, width=1000).strip(),
            "output_dir": str(self.folder / SEARCH),
        }
        return Command("sweep", SEARCH, "sweep.json", options, resumes=True)

    def _shared(self, train: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that both trainings have in common."""
        plan, validation = self.plan, self.validation
        batch = plan["per_device_train_batch_size"]
        steps = plan["hidden_states_steps"] + plan["prediction_steps"]
        options: dict[str, Any] = {
            "student_model": str(self.folder / CREATED),
            **train,
            **self.task,
            "learning_rate": plan["learning_rate"],
            "per_device_train_batch_size": batch,
            "per_device_eval_batch_size": max(batch, _EVAL_BATCH),
            "warmup_steps": _WARM_UP,
            "train_sampling_strategy": "group_by_length",
            "seed": self.seed,
            "bf16": plan["bf16"],
            "use_cpu": self.use_cpu,
            "logging_steps": max(1, steps // 50),
            "save_strategy": "steps",
            "save_steps": plan["save_steps"],
            "save_total_limit": 2,
            "report_to": "none",
        }
        if validation is None and "dataset_name" in train:
            options["validation_split"] = "none"
        if validation is not None:
            options |= {
                **validation,
                "eval_strategy": "steps",
                "eval_steps": plan["save_steps"],
                "eval_on_start": True,
                "load_best_model_at_end": True,
                "metric_for_best_model": plan["metric"],
                "greater_is_better": "yes" if plan["better"] == "higher" else "no",
                "early_stopping_patience": plan["early_stopping_patience"],
            }
        return options

    def _exports(self) -> list[Command]:
        """Return the exports; with 8-bit weights only where a file can tell what that costs."""
        validation = self.validation or {}
        scored = validation.get("validation_file")
        rows = None
        if scored is not None:  # once per setting that is tried
            rows = min(validation.get("max_eval_samples") or EXPORT_ROWS, EXPORT_ROWS)
        return [
            Command(
                "export",
                name,
                "export.json",
                {
                    "output_dir": str(self.folder / name),
                    "int8": name == INT8,
                    "tolerance": self.tolerance if name == INT8 else None,
                    "file": scored,
                    "split": validation.get("validation_split") if scored else None,
                    "max_eval_samples": rows,
                    **self.task,
                },
                (str(self.folder / STUDENT),),
                may_fail=True,
                needs=ONNX if name == INT8 else None,
            )
            for name in ((ONNX,) if scored is None else (ONNX, INT8))
        ]

    def _comparison(self, validation: Mapping[str, Any], exported: Sequence[str]) -> Command:
        names = {"validation_file": "file", "validation_split": "split"}
        options = {
            "teacher": self.teacher,
            "student_alone": [str(self.folder / ALONE)] if self.baseline else None,
            "student_distilled": [str(self.folder / STUDENT)],
            "models": exported,
            **{names.get(name, name): value for name, value in validation.items()},
            **self.task,
            "use_cpu": self.use_cpu,
            "output_dir": str(self.folder / COMPARISON),
        }
        return Command("compare", COMPARISON, "comparison.json", options)
