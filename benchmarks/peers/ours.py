"""The worker of hf_distill itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hugging_face import dataset, load_models, train, trainer_options
from transformers import default_data_collator
from worker import Gate, Setting, serve

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs


def options(setting: Setting) -> dict[str, Any]:
    """Return the options of distillation for a task."""
    if setting.task == "hidden":
        return {"stage": "intermediate"}
    if setting.task == "attention":
        return {"stage": "intermediate", "attention_loss": setting.way or "probabilities_mse"}
    loss = "mse" if setting.task == "scores_cached" else "kl_div"
    return {
        "distillation_loss_weight": 1.0,
        "temperature": setting.temperature,
        "distillation_loss": loss,
    }


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "hf-distill", "")
    teacher, student = load_models(setting)
    rows = dataset(setting)
    if setting.task.endswith("_cached"):
        rows = cache_teacher_outputs(
            teacher,
            rows,
            output_dir=Path(setting.output) / "teacher_outputs",
            data_collator=default_data_collator,
            batch_size=setting.batch_size,
            use_cpu=True,
        )
        teacher = None
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationTrainingArguments(**trainer_options(setting), **options(setting)),
        train_dataset=rows,
        data_collator=default_data_collator,
    )
    train(trainer, gate, setting)


if __name__ == "__main__":
    serve(distil)
