"""The options of ``hf-distill train`` in addition to those of ``DistillationTrainingArguments``.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass

from hf_distill.cli.arguments import (
    FORMATS,
    DataSource,
    HubDataArguments,
    config_option,
    task_option,
    teacher_column_kind_option,
    teacher_column_option,
)
from hf_distill.tasks.options import option


@dataclass
class TrainArguments:
    """Which models are trained, and how the run begins."""

    student_model: str = option(
        MISSING,
        help="The model to train: a folder (as written by `save_pretrained`) or a Hub id. It need "
        "not be fine-tuned; a head that it lacks starts out random.",
    )
    task: str | None = task_option()
    teacher_model: list[str] | None = option(
        help="The model to learn from, fine-tuned for the task: a folder or a Hub id. With another "
        "tokenizer than the student's it reads its own encoding of the texts, and its answers go "
        "over characters, its tags over words to the student's tokens. Of several, the "
        "predictions are averaged (--teacher_weights, --teacher_combination)."
    )
    teacher_outputs: str | None = option(
        help="Instead of --teacher_model: the folder that `hf-distill cache` wrote for this "
        "training data, prepared with the same options. The teacher is then not loaded at all; in "
        "two stages, --teacher_model is for the first one, and these outputs for the second."
    )
    teacher_column: str | None = teacher_column_option("Instead of --teacher_model: ")
    teacher_column_kind: str = teacher_column_kind_option()
    baseline: bool = option(
        False,
        help="Train without a teacher, everything else being equal: the way to make a teacher, "
        "and the run to compare a distilled student with. --teacher_model is then not even loaded.",
    )
    overwrite_output_dir: bool = option(
        False,
        help="Allow an --output_dir that holds an earlier run or other files; that run's "
        "checkpoints are deleted.",
    )
    resume: bool = option(
        False,
        help="Resume the run in --output_dir, in the stage and at the step of its last "
        "complete checkpoint; begin it if there is none yet, and do nothing if it is finished. So "
        "the same command is right after every interruption.",
    )
    early_stopping_patience: int | None = option(
        help="Stop once so many evaluations in a row were not better than the best one before. "
        "Needs --load_best_model_at_end, which keeps that one."
    )
    record_steps: int | None = option(
        help="Record what teacher and student compute for a training sentence every so many steps, "
        "up to 256 MiB, in the folder `samples` of --output_dir: `hf-distill plot` draws "
        "their attentions. By default nothing is recorded."
    )
    recipe: str | None = option(
        help="A pair of models with published data and settings; `hf-distill recipes` lists them. "
        "It sets --task and the options that it is made of; those of --config and of the command "
        "line override it, and --train_file or --dataset_name replaces its data."
    )
    config: str | None = config_option()

    def __post_init__(self) -> None:
        """Check how often something is done, and what describes the column of a teacher."""
        for name in ("record_steps", "early_stopping_patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be at least 1.")
        if self.teacher_column is None and self.teacher_column_kind != "probabilities":
            raise ValueError(
                f"--teacher_column_kind {self.teacher_column_kind} needs --teacher_column."
            )


@dataclass
class TrainingFileArguments(HubDataArguments):
    """The data to train on."""

    train_file: str | None = option(help=f"The training data: {FORMATS}.")
    train_split: str = option("train", help="The split of --dataset_name to train on.")
    max_train_samples: int | None = option(
        help="Use only this many training examples, taken evenly from all over the data."
    )

    @property
    def training(self) -> DataSource:
        """The data to train on, all of it."""
        source = self.source_of(self.train_file, self.train_split, option="train_file")
        return source._replace(limited_by="max_train_samples")


@dataclass
class TrainDataArguments(TrainingFileArguments):
    """The data of a training run."""

    validation_file: str | None = option(
        help="The data to score the student on at the end, and during training with "
        "--eval_strategy. Same formats as --train_file."
    )
    validation_split: str = option(
        "validation", help="The split of --dataset_name to score on; `none` for no scoring."
    )
    max_eval_samples: int | None = option(
        help="Use only this many validation examples, taken evenly from all over the data."
    )

    def check(self) -> None:
        """Check that no option is given that nothing would read."""
        scored = self.validation
        if self.max_eval_samples is not None and scored is None:
            raise ValueError(
                f"--max_eval_samples {self.max_eval_samples} needs data to score on: pass "
                "--validation_file, or leave it out."
            )
        splits = {"train_split": self.training, "validation_split": scored}
        if scored is None and self.validation_split == "none":
            del splits["validation_split"]
        self.check_use(splits)

    @property
    def validation(self) -> DataSource | None:
        """The data to score on, if there is any."""
        on_hub = self.dataset_name is not None and self.validation_split != "none"
        if self.validation_file is None and not on_hub:
            return None
        return self.source_of(
            self.validation_file,
            self.validation_split,
            self.max_eval_samples,
            option="validation_file",
        )


@dataclass
class IntermediateStageArguments:
    """A stage of intermediate-layer distillation before the other."""

    intermediate_epochs: float | None = option(
        help="Two stages in one command: first this many epochs in which the student learns the "
        "teacher's hidden states and attentions (TinyBERT), in the folder `intermediate` of "
        "--output_dir, then the prediction stage as the other options say. The options of "
        "intermediate layers (--layer_mapping, --attention_loss, …) then belong to the first stage "
        "alone."
    )
    intermediate_max_steps: int | None = option(
        help="Steps of the first stage, instead of --intermediate_epochs."
    )
    intermediate_train_file: str | None = option(
        help="The training data of the first stage, such as augmented data; its labels do not "
        "count. By default that of the second."
    )
    intermediate_learning_rate: float | None = option(
        help="The learning rate of the first stage. By default that of the second."
    )

    def __post_init__(self) -> None:
        """Check that the values are in range, and that none is without effect."""
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name} {value} must be a finite number above 0.")
        for name in ("intermediate_train_file", "intermediate_learning_rate"):
            if getattr(self, name) is not None and not self.wanted:
                raise ValueError(f"--{name} needs --intermediate_epochs.")

    @property
    def wanted(self) -> bool:
        """Return whether there is such a stage."""
        return self.intermediate_epochs is not None or self.intermediate_max_steps is not None
