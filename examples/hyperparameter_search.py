"""Search temperature and weight for a pair of text classifiers, with Optuna.

    python examples/hyperparameter_search.py --trials 20 --student STUDENT --teacher TEACHER \
        --dataset csv --train_file train.csv --validation_file dev.csv --output_dir search \
        --save_strategy no

Models, data and the other options are those of run_classification.py, which must be in the same
folder. The best values are in `best.json` in the output directory; train with them:

    python examples/run_classification.py --temperature … --distillation_loss_weight … (the rest)

The validation data chose the values, so report the final score on data that the search has not
seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.samplers import TPESampler
from run_classification import ScriptArguments, accuracy, load_features, load_student
from transformers import AutoTokenizer, HfArgumentParser

from hf_distill import DistillationTrainer, DistillationTrainingArguments


@dataclass
class SearchArguments:
    """Options of the search in addition to the arguments of a single run."""

    trials: int = 10


def search_space(trial: Any) -> dict[str, float]:
    """The values to try; both are read from the arguments at every training step."""
    return {
        "temperature": trial.suggest_float("temperature", 1.0, 8.0, log=True),
        "distillation_loss_weight": trial.suggest_float("distillation_loss_weight", 0.1, 1.0),
    }


def main() -> None:
    """Search, and write down the best values."""
    parser = HfArgumentParser((SearchArguments, ScriptArguments, DistillationTrainingArguments))
    search, script, args = parser.parse_args_into_dataclasses()

    tokenizer = AutoTokenizer.from_pretrained(script.student)
    with args.main_process_first(desc="preparing the data"):
        train, validation, names = load_features(script, tokenizer)

    trainer = DistillationTrainer(
        model_init=lambda: load_student(script, names),  # each trial starts from the same student
        teacher_model=script.teacher,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    best = trainer.hyperparameter_search(
        search_space,
        # Not the default, which adds up all metrics, the parts of the loss among them; and never a
        # loss: those of two temperatures cannot be compared.
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        direction="maximize",
        n_trials=search.trials,
        sampler=TPESampler(seed=args.seed),
    )
    if trainer.is_world_process_zero():
        values = {"accuracy": best.objective, **best.hyperparameters}
        print(f"The best of {search.trials} trials: {values}")
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        (Path(args.output_dir) / "best.json").write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
