r"""Two stages on SQuAD, and what each part of them is worth: the runs behind RESULTS.md.

The students, teacher, data and settings of ``squad_distillation.py``, which must have trained the
teacher before. Each run is two trainings: intermediate layers, with the teacher beside, then the
prediction layer, with its stored logits. It is started, stopped and started again in the same way:

    python benchmarks/squad_stages.py --data_dir SQUAD --teacher_encoder MINILM_L6 \
        --small_encoder MINILM_L3
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, circumstances, replace_section, write_json
from safetensors.torch import load_model, save_model
from squad_distillation import Material, Run, arguments_of, claim, metrics_of, parser
from squad_table import render_stages
from torch import nn
from transformers import AutoModelForQuestionAnswering
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer
from hf_distill.question_answering import QuestionAnsweringEvaluator


@dataclass(frozen=True)
class Stages:
    """One row of the table: what the first stage compares, and what the second learns from."""

    name: str
    hidden_states_loss_weight: float = 1.0
    attention_loss_weight: float = 1.0
    attention_loss: str = "scores"
    layer_mapping: str = "uniform"
    second: str = "distilled"
    """distilled, or alone: without prediction layer, on the labels."""


ROWS = (
    Stages("stages"),
    Stages("stages-no-attention", attention_loss_weight=0.0),
    Stages("stages-no-hidden-states", hidden_states_loss_weight=0.0),
    Stages("stages-no-prediction", second="alone"),
    Stages("stages-last", layer_mapping="last"),
    Stages("stages-first", layer_mapping="first"),
)


def first_stage(
    stages: Stages, run: Run, material: Material, model: nn.Module, options: Any
) -> tuple[float, list[dict[str, float]]]:
    """Train on intermediate layers; the student is kept, so that it is not done twice.

    Returns:
        CPU seconds, and the losses over time.
    """
    folder = material.work_dir / f"{run.name}-layers"
    done = folder / "student.safetensors"
    if done.exists():
        load_model(model, done)
        return 0.0, []
    train_features, _, _ = material.data(run)
    labels = ["start_positions", "end_positions"]
    trainer = DistillationTrainer(
        model=model,
        teacher_model=AutoModelForQuestionAnswering.from_pretrained(
            material.teacher_dir(run.squad), dtype=torch.float32, attn_implementation="eager"
        ),
        args=arguments_of(
            replace(run, epochs=options.intermediate_epochs),
            folder,
            stage="intermediate",
            learning_rate=options.intermediate_learning_rate,
            hidden_states_loss_weight=stages.hidden_states_loss_weight,
            attention_loss_weight=stages.attention_loss_weight,
            attention_loss=stages.attention_loss,
            layer_mapping=stages.layer_mapping,
            eval_strategy="no",
        ),
        train_dataset=train_features.remove_columns(labels),
        processing_class=material.tokenizer,
        data_collator=material.collator,
    )
    cpu = time.process_time()
    interrupted = get_last_checkpoint(folder) if folder.exists() else None
    trainer.train(resume_from_checkpoint=interrupted)
    partial = done.with_suffix(".tmp")
    save_model(model, partial)
    partial.replace(done)
    names = ("step", "loss", "loss_hidden_states", "loss_attention")
    curve = [
        {name: entry[name] for name in names if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return time.process_time() - cpu, curve


def execute(stages: Stages, run: Run, material: Material, options: Any) -> dict[str, Any]:
    """Both stages, and the score after each epoch of the second."""
    train_features, validation, validation_features = material.data(run)
    model = material.model(run)
    first_seconds, curve = first_stage(stages, run, material, model, options)
    folder = material.work_dir / run.name
    trainer = DistillationTrainer(
        model=model,
        teacher_model=material.teacher(run.squad, train_features)
        if stages.second == "distilled"
        else None,
        args=arguments_of(run, folder),
        train_dataset=train_features,
        eval_dataset=validation_features,
        processing_class=material.tokenizer,
        data_collator=material.collator,
        compute_metrics=QuestionAnsweringEvaluator(validation, validation_features),
    )
    cpu = time.process_time()
    interrupted = get_last_checkpoint(folder) if folder.exists() else None
    trainer.train(resume_from_checkpoint=interrupted)
    cpu = time.process_time() - cpu
    for finished in (folder, Path(f"{folder}-layers")):
        shutil.rmtree(finished)
    evaluations = [metrics_of(entry) for entry in trainer.state.log_history if "eval_f1" in entry]
    return {
        "name": run.name,
        "config": asdict(run),
        "stages": asdict(stages),
        "intermediate_epochs": options.intermediate_epochs,
        "intermediate_learning_rate": options.intermediate_learning_rate,
        "result": evaluations[-1],
        "evaluations": evaluations,
        "intermediate_curve": curve,
        "cpu_seconds": {"intermediate": round(first_seconds, 1), "prediction": round(cpu, 1)},
        "teacher_sha256": material.teacher_digest(run),
        **circumstances(),
    }


def main() -> None:
    """Run what has no result yet, then write the table."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--intermediate_epochs", type=float, default=4)
    options_parser.add_argument("--intermediate_learning_rate", type=float, default=3e-4)
    options_parser.add_argument("--rows", nargs="+", default=["stages"])
    options = options_parser.parse_args()
    if not options.table:
        material = Material(options)
        for squad in options.squad[:1]:
            for model in options.students:
                for seed in options.seeds:
                    for stages in (row for row in ROWS if row.name in options.rows):
                        distils = stages.second == "distilled"
                        run = Run(
                            squad,
                            model,
                            stages.name,
                            seed,
                            options.small_epochs if model == "small" else options.epochs,
                            options.learning_rate,
                            options.dropout,
                            temperature=options.temperature,
                            distillation_loss_weight=1.0 if distils else 0.0,
                        )
                        with claim(material.work_dir / f"{run.name}.lock") as mine:
                            if mine and not (RESULTS / f"{run.name}.json").exists():
                                print(f"{run.name}: {asdict(stages)}", flush=True)
                                write_json(run.name, execute(stages, run, material, options))
    replace_section("squad_stages", render_stages())


if __name__ == "__main__":
    main()
