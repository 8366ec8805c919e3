"""Run the teacher once, then try temperatures and weights for a text classifier at its expense.

    python examples/sweep_cached.py --student STUDENT --teacher TEACHER \
        --dataset csv --train_file train.csv --validation_file dev.csv --output_dir sweep \
        --temperatures 1 2 4 8 --weights 0.25 0.5 0.75 1 --save_strategy no

Models, data and the other options are those of run_classification.py, which must be in the same
folder. The teacher's outputs are kept in `teacher_outputs` in the output directory: called again,
the script takes them from there, and refuses those of another teacher or other data. All trials are
in `sweep.json`, with the table `sweep.md` and the heat map `sweep.png`.

`hf-distill sweep` does the same without a script, trains with several seeds, resumes where it was
interrupted and keeps the best student. The validation data chose the values, so judge the student
in the end on other data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna import load_study
from optuna.samplers import GridSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from run_classification import ScriptArguments, accuracy, load_features, load_student
from transformers import AutoTokenizer, HfArgumentParser

from hf_distill import DistillationTrainer, DistillationTrainingArguments, cache_teacher_outputs
from hf_distill.reports.pages import write_sweep
from hf_distill.reports.sweep_report import SweepReport, TrialReport


@dataclass
class SweepArguments:
    """Options of the sweep in addition to the arguments of a single run."""

    temperatures: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0])
    weights: list[float] = field(default_factory=lambda: [0.5, 1.0])


def main() -> None:
    """Cache, search, and report."""
    parser = HfArgumentParser((SweepArguments, ScriptArguments, DistillationTrainingArguments))
    sweep, script, args = parser.parse_args_into_dataclasses()
    output = Path(args.output_dir)

    tokenizer = AutoTokenizer.from_pretrained(script.student)
    with args.main_process_first(desc="preparing the data"):
        train, validation, names = load_features(script, tokenizer)
    train = cache_teacher_outputs(
        script.teacher,
        train,
        task="text-classification",
        processing_class=tokenizer,
        output_dir=output / "teacher_outputs",
        use_cpu=args.use_cpu,
    )

    trainer = DistillationTrainer(
        model_init=lambda: load_student(script, names),  # each trial starts from the same student
        args=args,
        train_dataset=train,  # brings the teacher's outputs with it
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    grid = {"temperature": sweep.temperatures, "distillation_loss_weight": sweep.weights}
    trials = InMemoryStorage()
    trainer.hyperparameter_search(
        lambda trial: {
            name: trial.suggest_categorical(name, values) for name, values in grid.items()
        },
        compute_objective=lambda metrics: metrics["eval_accuracy"],
        direction="maximize",
        n_trials=len(sweep.temperatures) * len(sweep.weights),
        sampler=GridSampler(grid, seed=args.seed),
        study_name="sweep",
        storage=trials,
    )
    if trainer.is_world_process_zero():
        report = SweepReport(
            task="text-classification",
            metric="accuracy",
            lower_is_better=False,
            trials=[tried(one) for one in load_study(study_name="sweep", storage=trials).trials],
            parameters=list(grid),
        )
        write_sweep(report, output)
        print(report.to_markdown())


def tried(trial: Any) -> TrialReport:
    """What came of a trial of Optuna's."""
    if trial.state != TrialState.COMPLETE:
        return TrialReport(trial.number, trial.params, failure=trial.state.name.lower())
    return TrialReport(trial.number, trial.params, [trial.value], trial.duration.total_seconds())


if __name__ == "__main__":
    main()
