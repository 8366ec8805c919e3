"""The worker of SilverSpoon-KD: its response-based and its holistic distiller.

The former takes models whose outputs have ``logits``, which those for question answering lack.
"""

from __future__ import annotations

import re
from typing import Any

from hugging_face import dataset, load_models, train, trainer_options
from silverspoon_kd import (
    HolisticDistiller,
    ResponseBasedDistiller,
    TrainingArguments,
    create_alignments,
)
from silverspoon_kd.losses import kl_divergence_loss
from transformers import default_data_collator
from worker import Gate, Setting, serve


def exactly(name: str) -> str:
    """Return the pattern of one module, as patterns are searched for in names."""
    return f"^{re.escape(name)}$"


def modules(setting: Setting) -> dict[str, str]:
    """Return the modules that are compared, student by teacher."""
    names = {"bert.embeddings": "bert.embeddings"}
    for teacher, student in setting.layer_pairs[1:]:
        names[f"bert.encoder.layer.{teacher - 1}"] = f"bert.encoder.layer.{student - 1}"
    return {exactly(teacher): exactly(student) for teacher, student in names.items()}


def attention_modules(setting: Setting) -> dict[str, str]:
    """Return the modules whose second output are attentions."""
    place = "bert.encoder.layer.{}.attention.self"
    return {
        exactly(place.format(teacher - 1)): exactly(place.format(student - 1))
        for teacher, student in setting.layer_pairs[1:]
    }


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    hidden = setting.task in ("hidden", "attention")
    name = "HolisticDistiller" if hidden else "ResponseBasedDistiller"
    gate = Gate(setting, "silverspoon-kd", name)
    teacher, student = load_models(setting)
    common: dict[str, Any] = {
        "student_model": student,
        "teacher_model": teacher,
        "args": TrainingArguments(**trainer_options(setting)),
        "train_dataset": dataset(setting),
        "data_collator": default_data_collator,
    }
    if hidden:
        alignments = create_alignments(teacher, student, modules(setting), loss_function="mse")
        if setting.task == "attention":
            alignments += create_alignments(
                teacher,
                student,
                attention_modules(setting),
                loss_function="mse",
                output_selector_index=1,
            )
        trainer = HolisticDistiller(alignments=alignments, **common)
    else:
        loss = kl_divergence_loss(temperature=setting.temperature)
        trainer = ResponseBasedDistiller(soft_loss_fn=loss, **common)
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
