"""Teacher, student alone and student distilled on SQuAD: the runs behind RESULTS.md.

Each finished run leaves one JSON file in ``results/``; what is there is not run again, and a run
that was stopped goes on from its last epoch. So the program can be stopped at any time and started
again, and several processes can share the work:

    OMP_NUM_THREADS=1 python benchmarks/squad_distillation.py --data_dir DIR \
        --teacher_encoder DIR --small_encoder DIR
    python benchmarks/squad_distillation.py --table
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from report import RESULTS, circumstances, write_json
from squad_students import student
from squad_table import write_table
from torch import nn
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    cache_teacher_outputs,
)
from hf_distill.tasks.question_answering import (
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_eval_features,
    prepare_train_features,
)


@dataclass(frozen=True)
class Run:
    """One training run and all that it depends on."""

    squad: str
    """1.1 or 2.0."""
    model: str
    """teacher; or one of STUDENTS."""
    way: str
    """alone or distilled."""
    seed: int
    epochs: float
    learning_rate: float
    hidden_dropout: float
    temperature: float = 2.0
    distillation_loss_weight: float = 0.0
    distillation_loss: str = "kl_div"
    batch_size: int = 24
    max_length: int = 256
    doc_stride: int = 64
    warmup: float = 0.1
    weight_decay: float = 0.0

    @property
    def name(self) -> str:
        """The name of its result."""
        return f"v{self.squad}-{self.model}-{self.way}-{self.seed}"


class Material:
    """Models and data, read and prepared when first asked for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work_dir = Path(options.work_dir)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            options.teacher_encoder
        )
        self.collator = DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=8)

    def data(self, run: Run) -> tuple[Dataset, Dataset, Dataset]:
        """Training features, validation questions and their features."""
        folder = Path(self.options.data_dir)
        lengths: dict[str, Any] = {"max_length": run.max_length, "doc_stride": run.doc_stride}
        train = load_question_answering_dataset(folder / f"train-v{run.squad}.json.gz")
        validation = load_question_answering_dataset(folder / f"validation-v{run.squad}.json.gz")
        train_features = prepare_train_features(train, self.tokenizer, **lengths)
        train_features = train_features.add_column(
            "length", [len(row) for row in train_features["input_ids"]]
        )
        return (
            train_features,
            validation,
            prepare_eval_features(validation, self.tokenizer, **lengths),
        )

    def model(self, run: Run) -> nn.Module:
        """The model that a run starts from; its head is drawn with the run's seed."""
        set_seed(run.seed)
        return student(
            run.model,
            self.options.teacher_encoder,
            self.options.small_encoder,
            hidden_dropout=run.hidden_dropout,
        )

    def teacher_dir(self, squad: str) -> Path:
        """Where the fine-tuned teacher is kept."""
        return self.work_dir / f"teacher-v{squad}"

    def teacher_digest(self, run: Run) -> str:
        """Tells whether two students had the same teacher."""
        weights = self.teacher_dir(run.squad) / "model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()

    def with_teacher(self, run: Run, features: Dataset, name: str = "train") -> Dataset:
        """Features with the teacher's outputs; they are computed once for all runs.

        Args:
            run: whose teacher it is.
            features: prepared questions.
            name: of these features among the others of this teacher.
        """
        folder = self.teacher_dir(run.squad)
        return cache_teacher_outputs(
            str(folder),
            features,
            processing_class=self.tokenizer,
            data_collator=self.collator,
            output_dir=folder / f"outputs-{name}",
            teacher_dtype="float32",
            teacher_attn_implementation="eager",
            mixed_precision="bf16",
            use_cpu=True,
        )


def arguments_of(run: Run, output_dir: Path, **options: Any) -> DistillationTrainingArguments:
    """The arguments of a run; ``options`` come first."""
    own = {
        "temperature": run.temperature,
        "distillation_loss_weight": run.distillation_loss_weight,
        "distillation_loss": run.distillation_loss,
        "eval_with_teacher": False,
        "learning_rate": run.learning_rate,
        "num_train_epochs": run.epochs,
        "per_device_train_batch_size": run.batch_size,
        "per_device_eval_batch_size": 32,
        "warmup_steps": run.warmup,
        "weight_decay": run.weight_decay,
        "seed": run.seed,
        "use_cpu": True,
        "bf16": True,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_steps": 50,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return DistillationTrainingArguments(str(output_dir), **{**own, **options})


def execute(run: Run, material: Material) -> dict[str, Any]:
    """Train and evaluate; the teacher is saved, too."""
    train_features, validation, validation_features = material.data(run)
    model = material.model(run)
    distils = run.distillation_loss_weight > 0
    if distils:
        train_features = material.with_teacher(run, train_features)
    output_dir = material.work_dir / run.name
    trainer = DistillationTrainer(
        model=model,
        args=arguments_of(run, output_dir),
        train_dataset=train_features,
        eval_dataset=validation_features,
        processing_class=material.tokenizer,
        data_collator=material.collator,
        compute_metrics=QuestionAnsweringEvaluator(validation, validation_features),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    interrupted = get_last_checkpoint(output_dir) if output_dir.exists() else None
    trainer.train(resume_from_checkpoint=interrupted)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if run.model == "teacher":
        trainer.save_model(str(material.teacher_dir(run.squad)))
    shutil.rmtree(output_dir)
    history = trainer.state.log_history
    evaluations = [metrics_of(entry) for entry in history if "eval_f1" in entry]
    return {
        "name": run.name,
        "config": asdict(run),
        "result": evaluations[-1],
        "evaluations": evaluations,
        "loss_curve": [
            {key: entry[key] for key in ("step", "loss", "learning_rate")}
            for entry in history
            if "loss" in entry
        ],
        "train_features": len(train_features),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "teacher_sha256": material.teacher_digest(run) if distils else None,
        "resumed": interrupted is not None,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        **circumstances(),
    }


def metrics_of(entry: dict[str, Any]) -> dict[str, float]:
    return {
        name.removeprefix("eval_"): value
        for name, value in entry.items()
        if name in ("epoch", "step") or (name.startswith("eval_") and "per_second" not in name)
    }


def plan(options: argparse.Namespace) -> list[Run]:
    """All runs, in the order in which they are wanted."""
    runs: list[Run] = []
    for squad in options.squad:
        seeds = options.seeds if squad == "1.1" else options.seeds[:1]
        runs.append(
            Run(
                squad,
                "teacher",
                "alone",
                seed=0,
                epochs=options.teacher_epochs,
                learning_rate=options.teacher_learning_rate,
                hidden_dropout=options.teacher_dropout,
            )
        )
        for model in options.students:
            epochs = options.small_epochs if model == "small" else options.epochs
            for seed in seeds:
                common = {
                    "seed": seed,
                    "epochs": epochs,
                    "learning_rate": options.learning_rate,
                    "hidden_dropout": options.dropout,
                }
                runs.append(Run(squad, model, "alone", **common))
                runs.append(
                    Run(
                        squad,
                        model,
                        "distilled",
                        **common,
                        temperature=options.temperature,
                        distillation_loss_weight=options.distillation_loss_weight,
                        distillation_loss=options.distillation_loss,
                    )
                )
    return [run for run in runs if not options.only or any(o in run.name for o in options.only)]


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may do a run; the claim ends with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _is_done(run: Run, material: Material) -> bool:
    if run.model == "teacher" and not material.teacher_dir(run.squad).exists():
        return False
    return (RESULTS / f"{run.name}.json").exists()


def work(options: argparse.Namespace) -> None:
    """Do every run that has no result yet and that no other process is doing."""
    material = Material(options)
    for run in plan(options):
        with claim(material.work_dir / f"{run.name}.lock") as mine:
            if not mine or _is_done(run, material):
                continue
            if run.way == "distilled" and not material.teacher_dir(run.squad).exists():
                print(f"{run.name}: waits for its teacher; start this program again later")
                continue
            print(f"{run.name}: {asdict(run)}", flush=True)
            write_json(run.name, execute(run, material))


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of this program, and of those that use its parts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only write the table, run nothing")
    parser.add_argument("--data_dir", help="train-v1.1.json.gz, validation-v1.1.json.gz, …")
    parser.add_argument("--teacher_encoder", help="a BERT encoder without head, 6 layers")
    parser.add_argument("--small_encoder", help="a BERT encoder without head, 3 layers")
    parser.add_argument("--work_dir", default="build/squad_distillation", help="teacher, locks")
    parser.add_argument("--only", nargs="*", help="runs with one of these in their names")
    parser.add_argument("--squad", nargs="+", default=["1.1", "2.0"], choices=["1.1", "2.0"])
    parser.add_argument("--students", nargs="+", default=["cut", "small"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--teacher_epochs", type=float, default=2)
    parser.add_argument("--teacher_learning_rate", type=float, default=1.5e-4)
    parser.add_argument("--teacher_dropout", type=float, default=0.0)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--small_epochs", type=float, default=8)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--temperature", type=float, default=3.0)
    parser.add_argument("--distillation_loss_weight", type=float, default=1.0)
    parser.add_argument("--distillation_loss", default="kl_div")
    return parser


def main() -> None:
    """Run what the command line says."""
    own = parser(__doc__)
    options = own.parse_args()
    if options.table:
        write_table()
        return
    for name in ("data_dir", "teacher_encoder", "small_encoder"):
        if getattr(options, name) is None:
            own.error(f"--{name} is needed to run anything")
    work(options)


if __name__ == "__main__":
    main()
