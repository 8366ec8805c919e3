"""Every option of a distillation run, on top of those of ``TrainingArguments``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_distill.losses import ATTENTION_LOSSES, HIDDEN_STATES_LOSSES, LOGITS_LOSSES
from hf_distill.schedules import SCHEDULES, scheduled_value

TEACHER_DTYPES = ("auto", "float32", "bfloat16", "float16")
STAGES = ("prediction", "intermediate")
TEACHER_COMBINATIONS = ("probabilities", "logits")


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """``TrainingArguments`` with the options of distillation.

    The loss of a step is ``(1 - w) * task + w * prediction``, where ``task`` is the student's own
    loss on the labels, ``prediction`` compares the logits of student and teacher, and ``w`` is
    ``distillation_loss_weight`` (Hinton et al. 2015, *Distilling the Knowledge in a Neural
    Network*, section 2), plus the losses of intermediate layers, each by its weight. In stage
    ``intermediate`` it is the latter alone (Jiao et al. 2020, *TinyBERT*, section 3.2). All values
    are read at every step, so ``hyperparameter_search`` and callbacks may change them.

    Raises:
        ValueError: if a value is out of its range; the message names the argument.
    """

    stage: str = field(
        default="prediction",
        metadata={
            "help": "What the student learns: prediction (the teacher's logits, mixed with the "
            "labels) or intermediate (the teacher's hidden states, and attentions if one of their "
            "losses is named, layer by layer: TinyBERT's first stage; no labels are needed, and "
            "the task head is left alone).",
            "choices": list(STAGES),
        },
    )
    temperature: float = field(
        default=2.0,
        metadata={
            "help": "Softens the logits of student and teacher before they are compared: they are "
            "divided by it. Above 0. 1 compares the plain probabilities, larger values give the "
            "teacher's less likely answers more say. (The loss is multiplied by its square, so "
            "that its gradients keep their size. Not used by the loss `mse`.)"
        },
    )
    temperature_schedule: str = field(
        default="constant",
        metadata={
            "help": "How the temperature goes from `temperature` to `temperature_end` over the "
            "run: constant, linear or cosine.",
            "choices": list(SCHEDULES),
        },
    )
    temperature_end: float | None = field(
        default=None,
        metadata={"help": "The temperature at the end of a linear or cosine schedule."},
    )
    distillation_loss_weight: float = field(
        default=0.5,
        metadata={
            "help": "w in loss = (1 - w) * label loss + w * distillation loss, from 0 (no "
            "distillation: a plain Trainer run, the teacher is not even loaded) to 1 (labels are "
            "not needed)."
        },
    )
    distillation_loss_weight_schedule: str = field(
        default="constant",
        metadata={
            "help": "How the weight goes from `distillation_loss_weight` to "
            "`distillation_loss_weight_end` over the run: constant, linear or cosine.",
            "choices": list(SCHEDULES),
        },
    )
    distillation_loss_weight_end: float | None = field(
        default=None,
        metadata={"help": "The weight at the end of a linear or cosine schedule."},
    )
    distillation_loss: str = field(
        default="kl_div",
        metadata={
            "help": "What compares the logits: kl_div (Hinton's, the student covers all that the "
            "teacher finds likely), reverse_kl (the student concentrates on the teacher's best), "
            "js_div (their symmetric middle), skew_kl (kl_div against a mix of both, DistiLLM) or "
            "mse (squared distance of the logits themselves; half of it where an input has several "
            "labels, each a choice between yes and no).",
            "choices": sorted(LOGITS_LOSSES),
        },
    )
    hidden_states_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "What the loss between hidden states is multiplied by before it is added, 0 or "
            "more. By default 1 in stage intermediate and 0 in stage prediction."
        },
    )
    hidden_states_loss: str = field(
        default="mse",
        metadata={
            "help": "What compares the hidden states of a token: mse (TinyBERT's: the mean squared "
            "difference) or cosine (1 - cosine similarity, blind to their length). Where the "
            "student is narrower, a projection is trained with it.",
            "choices": list(HIDDEN_STATES_LOSSES),
        },
    )
    attention_loss_weight: float | None = field(
        default=None,
        metadata={
            "help": "What the loss between attentions is multiplied by before it is added, 0 or "
            "more. By default 1 in stage intermediate if attention_loss is named, and 0 otherwise."
        },
    )
    attention_loss: str | None = field(
        default=None,
        metadata={
            "help": "What compares attentions: scores (TinyBERT's: the squared difference before "
            "the softmax), probabilities (the KL divergence after it), probabilities_mse (their "
            "squared difference) or relations (MiniLMv2's: between queries, between keys and "
            "between values; for pairs with other numbers of heads). By default scores, if a "
            "weight is given.",
            "choices": list(ATTENTION_LOSSES),
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "For attention_loss relations: into how many heads queries, keys and values "
            "are split before they are compared; must divide both widths. By default the "
            "teacher's number of attention heads."
        },
    )
    layer_mapping: str = field(
        default="uniform",
        metadata={
            "help": "Which teacher layer a student layer learns from: uniform (every N/M-th), last "
            "or first (the teacher's last or first layers), auto (by how alike they are on a "
            "sample of the data, linear CKA), a list of one teacher layer for each student layer "
            "(2,4,6), or only some pairs, student:teacher (3:6). 0 is the embedding output. Of "
            "encoder and decoder each has this mapping, or its own: 'encoder=uniform;decoder=3:6'."
        },
    )
    teacher_dtype: str | None = field(
        default=None,
        metadata={
            "help": "The number format of the teacher's weights: auto (as they were saved), "
            "float32, bfloat16 or float16. By default a teacher that is loaded by name is loaded "
            "as it was saved, and one that is passed as a module is left alone.",
            "choices": list(TEACHER_DTYPES),
        },
    )
    teacher_attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "The teacher's attention implementation (sdpa, eager, flash_attention_2, …). "
            "By default the model's own choice."
        },
    )
    teacher_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "With several teachers (teacher_model is a list): how much each of them "
            "counts, in their order. By default all count the same."
        },
    )
    teacher_combination: str = field(
        default="probabilities",
        metadata={
            "help": "How several teachers are averaged: probabilities (the mean of what they "
            "predict) or logits (the geometric mean).",
            "choices": list(TEACHER_COMBINATIONS),
        },
    )
    teacher_check_samples: int = field(
        default=256,
        metadata={
            "help": "Before training, try the teacher on this many rows of the evaluation data, if "
            "it has labels: one that is clearly worse than always giving the most frequent label "
            "is refused, because its labels probably have another order. 0 leaves it out."
        },
    )
    eval_with_teacher: bool = field(
        default=True,
        metadata={
            "help": "Also run the teacher during evaluation, for `eval_loss_prediction`. Turn it "
            "off to save time: `eval_loss`, the label loss, does not need the teacher. (Stage "
            "intermediate has no other loss and always needs it.)"
        },
    )

    def __post_init__(self) -> None:
        """Check the options of distillation, then those of ``TrainingArguments``."""
        self.check_distillation_options()
        super().__post_init__()
        self._check_training_options()

    def _check_training_options(self) -> None:
        """Refuse numbers that PyTorch fails at when the training has begun."""
        if not (_is_number(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(
                f"learning_rate must be a finite number of at least 0, but it is "
                f"{self.learning_rate!r}."
            )
        for name, least in (
            ("per_device_train_batch_size", 1),
            ("per_device_eval_batch_size", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least}, but it is {getattr(self, name)!r}."
                )

    def check_distillation_options(self) -> None:
        """Check what distillation adds to ``TrainingArguments``.

        Raises:
            ValueError: names the argument, its value and what it may be.
        """
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is None and name.endswith("_end"):
                continue
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a finite number above 0, but it is {value!r}.")
        for name in ("distillation_loss_weight", "distillation_loss_weight_end"):
            value = getattr(self, name)
            if value is None and name.endswith("_end"):
                continue
            if not _is_number(value) or not 0 <= value <= 1:
                raise ValueError(
                    f"{name} must be between 0 (no distillation) and 1 (no label loss), but it is "
                    f"{value!r}."
                )
        for name in ("temperature", "distillation_loss_weight"):
            kind, end = getattr(self, f"{name}_schedule"), getattr(self, f"{name}_end")
            if kind not in SCHEDULES:
                raise ValueError(
                    f"{name}_schedule must be one of {', '.join(SCHEDULES)}, but it is {kind!r}."
                )
            if kind == "constant" and end is not None:
                raise ValueError(
                    f"{name}_end={end!r} has no effect with {name}_schedule='constant'; set "
                    f"{name}_schedule to 'linear' or 'cosine', or leave {name}_end out."
                )
            if kind != "constant" and end is None:
                raise ValueError(f"{name}_schedule={kind!r} needs {name}_end, the value to end at.")
        if self.distillation_loss not in LOGITS_LOSSES:
            raise ValueError(
                f"distillation_loss must be one of {', '.join(sorted(LOGITS_LOSSES))}, but it is "
                f"{self.distillation_loss!r}. (A function of your own goes to "
                "DistillationTrainer(distillation_loss=...).)"
            )
        self._check_intermediate_options()
        if self.teacher_dtype is not None and self.teacher_dtype not in TEACHER_DTYPES:
            raise ValueError(
                f"teacher_dtype must be one of {', '.join(TEACHER_DTYPES)}, but it is "
                f"{self.teacher_dtype!r}."
            )
        if self.teacher_combination not in TEACHER_COMBINATIONS:
            raise ValueError(
                f"teacher_combination must be one of {', '.join(TEACHER_COMBINATIONS)}, but it is "
                f"{self.teacher_combination!r}."
            )
        if self.teacher_check_samples < 0:
            raise ValueError(
                f"teacher_check_samples must be 0 or more, but it is {self.teacher_check_samples}."
            )

    def _check_intermediate_options(self) -> None:
        for name, choices in (
            ("stage", STAGES),
            ("hidden_states_loss", HIDDEN_STATES_LOSSES),
            ("attention_loss", ATTENTION_LOSSES),
        ):
            value = getattr(self, name)
            if value not in choices and not (name == "attention_loss" and value is None):
                listed = ", ".join(choices)
                raise ValueError(f"{name} must be one of {listed}, but it is {value!r}.")
        for name in ("hidden_states_loss_weight", "attention_loss_weight"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, but it is {value!r}.")
        heads = self.relation_heads
        if heads is not None and (not isinstance(heads, int) or heads < 1):
            raise ValueError(f"relation_heads must be at least 1, but it is {heads!r}.")
        if self.stage == "intermediate" and not any(self.intermediate_weights.values()):
            raise ValueError(
                "stage='intermediate' has nothing to learn with hidden_states_loss_weight=0 and "
                "attention_loss_weight=0; set one of them above 0."
            )

    def temperature_at(self, progress: float) -> float:
        """Return the temperature when ``progress`` (0 to 1) of the training steps are done."""
        return scheduled_value(
            self.temperature_schedule,
            self.temperature,
            self.temperature if self.temperature_end is None else self.temperature_end,
            progress,
        )

    def distillation_loss_weight_at(self, progress: float) -> float:
        """Return the weight of the distillation loss at ``progress`` (0 to 1) of the run."""
        return scheduled_value(
            self.distillation_loss_weight_schedule,
            self.distillation_loss_weight,
            self.distillation_loss_weight
            if self.distillation_loss_weight_end is None
            else self.distillation_loss_weight_end,
            progress,
        )

    @property
    def faster_attention(self) -> str | None:
        """The ``attn_implementation`` in which a student trains faster than in its own, if any.

        In bfloat16 on a CPU, the backward pass of SDPA is slower than that of eager attention
        (measured up to 512 tokens; eager attention takes memory by the square of the length).
        Attention losses keep the model's own: teacher and student have to attend in the same way.
        """
        slow = self.bf16 and self.device.type == "cpu"
        return "eager" if slow and not self.intermediate_weights["attention"] else None

    @property
    def intermediate_weights(self) -> dict[str, float]:
        """What each loss between intermediate layers is multiplied by."""
        hidden_states, attention = self.hidden_states_loss_weight, self.attention_loss_weight
        first_stage = self.stage == "intermediate"
        if hidden_states is None:
            hidden_states = float(first_stage)
        if attention is None:
            attention = float(first_stage and self.attention_loss is not None)
        return {"hidden_states": hidden_states, "attention": attention}

    @property
    def attention_comparison(self) -> str:
        """What compares attentions, where they are compared."""
        return self.attention_loss or "scores"

    @property
    def uses_layer_losses(self) -> bool:
        """Whether intermediate layers are compared."""
        return any(self.intermediate_weights.values())

    @property
    def uses_logits_loss(self) -> bool:
        """Whether logits are compared at any step."""
        weight = max(self.distillation_loss_weight, self.distillation_loss_weight_end or 0.0)
        return self.stage == "prediction" and weight > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is needed at any step."""
        return self.uses_layer_losses or self.uses_logits_loss

    @property
    def needs_labels(self) -> bool:
        """Whether labels are needed at any step."""
        weights = [self.distillation_loss_weight]
        if self.distillation_loss_weight_end is not None:
            weights.append(self.distillation_loss_weight_end)
        return self.stage == "prediction" and min(weights) < 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
