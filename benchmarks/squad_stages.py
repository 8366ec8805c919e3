r"""Intermediate layers, augmentation and their parts on SQuAD: the runs behind RESULTS.md.

The teacher of ``squad_distillation.py``, which must have made it, and students that begin as there.
A row of the table is one way of training, with a first stage on intermediate layers or without one;
budgets are in optimizer steps. It is started, stopped and started again in the same way, also
several times at once:

    python benchmarks/squad_stages.py --data_dir SQUAD --teacher_encoder MINILM_L6 \
        --small_encoder MINILM_L3 --masked_lm MASKED_LM --questions 2000 \
        --rows alone distilled stages
    python benchmarks/squad_stages.py --table
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from report import RESULTS, circumstances, replace_section, write_json
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from squad_distillation import Material, Run, arguments_of, claim, metrics_of, parser
from squad_stages_table import render_stages
from torch import nn
from transformers import AutoModelForQuestionAnswering
from transformers.trainer_utils import get_last_checkpoint

from hf_distill import DistillationTrainer
from hf_distill.augmentation import augment_squad
from hf_distill.tasks.question_answering import (
    QuestionAnsweringEvaluator,
    load_question_answering_dataset,
    prepare_train_features,
)


@dataclass(frozen=True)
class Row:
    """A way of training: what a first stage compares, and what the last one learns from."""

    name: str
    layers: Mapping[str, Any] | None = None
    """Arguments of the first stage; ``None`` for no such stage."""
    distilled: bool = True
    """From the teacher's logits alone; otherwise from the labels alone."""
    masking: str | None = None
    """Data augmentation with this masking, for the first stage: of two stages the last one has the
    data as they are, as in TinyBERT on SQuAD."""
    longer: bool = False
    """With the steps of both stages in the one that there is."""


HIDDEN_STATES: Mapping[str, Any] = {"attention_loss_weight": 0.0}
"""A first stage that learns hidden states alone: the best one of this pair."""

ORIGIN: Mapping[str, Any] = {"layer_mapping": "0:0,1:1,2:3,3:5"}
"""The layers that ``cut`` was made of: its heads begin in the order of the teacher's."""

ROWS = {
    row.name: row
    for row in (
        Row("alone", distilled=False),
        Row("alone-longer", distilled=False, longer=True),
        Row("distilled"),
        Row("distilled-longer", longer=True),
        Row("stages", layers=HIDDEN_STATES),
        Row("no-prediction", layers=HIDDEN_STATES, distilled=False),
        Row("last", layers={**HIDDEN_STATES, "layer_mapping": "last"}),
        Row("first", layers={**HIDDEN_STATES, "layer_mapping": "first"}),
        Row("origin", layers={**HIDDEN_STATES, **ORIGIN}),
        Row("origin-light-attention", layers={"attention_loss_weight": 0.03, **ORIGIN}),
        Row("light-attention", layers={"attention_loss_weight": 0.03}),
        Row("attention", layers={"attention_loss_weight": 1.0}),
        Row(
            "attention-alone",
            layers={"attention_loss_weight": 1.0, "hidden_states_loss_weight": 0.0},
        ),
        Row("probabilities", layers={"attention_loss": "probabilities"}),
        Row("relations", layers={"attention_loss": "relations"}),
        Row("alone-augmented", distilled=False, masking="grouped"),
        Row("distilled-augmented", masking="grouped"),
        Row("distilled-augmented-longer", masking="grouped", longer=True),
        Row("distilled-augmented-single", masking="single"),
        Row("stages-augmented", layers=HIDDEN_STATES, masking="grouped"),
    )
}

AUGMENTED_QUESTIONS = 10_000
"""How many questions augmentation makes, whatever the number it begins with."""


@dataclass(frozen=True)
class StagesRun:
    """One run, and all that it depends on."""

    questions: int
    """So many of the training questions, in whole paragraphs; 0 for all."""
    student: str
    row: Row
    seed: int
    first_steps: int
    last_steps: int
    first_learning_rate: float
    settings: Run = field(repr=False)
    """What it shares with the runs of ``squad_distillation.py``."""

    @property
    def name(self) -> str:
        """The name of its result."""
        steps = f"{self.first_steps}-{self.last_steps}"
        return (
            f"stages-{self.questions or 'all'}-{self.student}-{self.row.name}-{steps}-{self.seed}"
        )

    @property
    def first_stage(self) -> str | None:
        """The name of its first stage, which other runs may share; ``None`` if it has none."""
        if self.row.layers is None:
            return None
        parts: list[object] = [self.questions or "all", self.row.masking, self.student, self.seed]
        parts += [self.first_steps, self.first_learning_rate]
        parts += [f"{name}={value}" for name, value in sorted(self.row.layers.items())]
        return "layers-" + "-".join(str(part) for part in parts if part is not None)


class StagesMaterial(Material):
    """Training data of several sizes, as it is and augmented."""

    def features(self, run: StagesRun, masking: str | None) -> tuple[str, Dataset]:
        """What a run is trained on, and its name.

        Args:
            run: how much of the data.
            masking: of the augmentation, if it is augmented.
        """
        name = f"{run.questions or 'all'}"
        path = self.work_dir / f"train-{name}.json"
        if not path.exists():
            write_sample(Path(self.options.data_dir), path, run.questions)
        if masking is not None:
            name += f"-{masking}"
            augmented = self.work_dir / f"train-{name}.json"
            if not augmented.exists():
                augment_squad(
                    path,
                    augmented,
                    model=self.options.masked_lm,
                    glove_path=self.options.glove_path,
                    multiplication_factor=AUGMENTED_QUESTIONS // run.questions
                    if run.questions
                    else 1,
                    masking=masking,
                    augment_questions=True,
                    dtype="float32",
                )
            path = augmented
        features = prepare_train_features(
            load_question_answering_dataset(path),
            self.tokenizer,
            max_length=run.settings.max_length,
            doc_stride=run.settings.doc_stride,
        )
        return name, features.add_column("length", [len(ids) for ids in features["input_ids"]])

    def validation(self, run: Run) -> tuple[Dataset, Dataset]:
        """Questions and their features."""
        _, questions, features = self.data(run)
        return questions, features


def write_sample(data_dir: Path, path: Path, questions: int) -> None:
    """Write so many of the training questions, in whole paragraphs; 0 for all."""
    with gzip.open(data_dir / "train-v1.1.json.gz", "rt") as file:
        articles = json.load(file)["data"]
    paragraphs = [part for article in articles for part in article["paragraphs"]]
    if questions:
        random.Random(0).shuffle(paragraphs)
        found = accumulate(len(paragraph["qas"]) for paragraph in paragraphs)
        paragraphs = paragraphs[: 1 + next(i for i, n in enumerate(found) if n >= questions)]
    content = {"version": "1.1", "data": [{"title": "sample", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def train(
    run: StagesRun,
    material: StagesMaterial,
    model: nn.Module,
    data: Dataset,
    *,
    first: bool,
) -> DistillationTrainer:
    """Train one stage."""
    row = run.row
    steps = run.first_steps if first else run.last_steps
    if row.longer:
        steps += run.first_steps
    options: dict[str, Any] = {"eval_strategy": "no", "max_steps": steps}
    options |= {"save_strategy": "steps", "save_steps": 500}
    if first:
        options |= {"stage": "intermediate", "learning_rate": run.first_learning_rate}
        options |= dict(row.layers or {})
    folder = material.work_dir / (run.first_stage if first and run.first_stage else run.name)
    trainer = DistillationTrainer(
        model=model,
        teacher_model=AutoModelForQuestionAnswering.from_pretrained(
            material.teacher_dir("1.1"), dtype=torch.float32, attn_implementation="eager"
        )
        if first
        else None,
        args=arguments_of(run.settings, folder, **options),
        train_dataset=data,
        processing_class=material.tokenizer,
        data_collator=material.collator,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    return trainer


def execute(run: StagesRun, material: StagesMaterial) -> dict[str, Any]:
    """Its stages, and the score at the end."""
    with claim(material.work_dir / f"data-{run.questions}-{run.row.masking}.lock", wait=True):
        first = material.features(run, run.row.masking)
        name, last = first if run.first_stage is None else material.features(run, None)
        if run.row.distilled:
            last = material.with_teacher(run.settings, last, f"stages-{name}")
    model = material.model(run.settings)
    before = {} if run.first_stage is None else _first_stage(run, material, model, first[1])
    cpu = time.process_time()
    trainer = train(run, material, model, last, first=False)
    questions, validation = material.validation(run.settings)
    trainer.compute_metrics = QuestionAnsweringEvaluator(questions, validation)
    result = metrics_of(trainer.evaluate(validation))
    shutil.rmtree(material.work_dir / run.name, ignore_errors=True)
    return {
        "name": run.name,
        "config": {**asdict(run), "train_features": len(first[1])},
        "result": result,
        "first_stage": before,
        "losses": _losses(trainer),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "teacher_sha256": material.teacher_digest(run.settings),
        **circumstances(),
    }


def _first_stage(
    run: StagesRun, material: StagesMaterial, model: nn.Module, features: Dataset
) -> dict[str, Any]:
    """Train the first stage, or take the model of a run that had the same one."""
    assert run.first_stage is not None
    kept = material.work_dir / f"{run.first_stage}.safetensors"
    if not kept.exists():
        inputs = features.remove_columns(["start_positions", "end_positions"])
        cpu = time.process_time()
        trainer = train(run, material, model, inputs, first=True)
        facts = {
            "losses": _losses(trainer),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        partial = kept.with_suffix(".tmp")
        save_model(model, str(partial), metadata={"facts": json.dumps(facts)})
        partial.replace(kept)
        shutil.rmtree(material.work_dir / run.first_stage)
    load_model(model, kept)
    with safe_open(kept, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return facts


def _losses(trainer: DistillationTrainer) -> list[dict[str, float]]:
    names = ("step", "loss", "loss_hidden_states", "loss_attention")
    return [
        {name: entry[name] for name in names if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def plan(options: argparse.Namespace) -> list[StagesRun]:
    """All runs that are asked for, seed by seed."""
    return [
        StagesRun(
            questions,
            name,
            ROWS[row],
            seed,
            options.first_steps,
            options.last_steps,
            options.first_learning_rate,
            Run(
                "1.1",
                name,
                row,
                seed,
                epochs=1,
                learning_rate=options.learning_rate,
                hidden_dropout=options.dropout,
                temperature=options.temperature,
                distillation_loss_weight=1.0 if ROWS[row].distilled else 0.0,
            ),
        )
        for seed in options.seeds
        for questions in options.questions
        for name in options.students
        for row in options.rows
    ]


def main() -> None:
    """Run what has no result yet, then write the table."""
    own = parser(__doc__)
    own.add_argument("--rows", nargs="+", default=["alone", "distilled", "stages"], choices=ROWS)
    own.add_argument("--questions", nargs="+", type=int, default=[0], help="0 for all")
    own.add_argument("--first_steps", type=int, default=400)
    own.add_argument("--last_steps", type=int, default=400)
    own.add_argument("--first_learning_rate", type=float, default=3e-4)
    own.add_argument("--masked_lm", help="for the augmented rows")
    own.add_argument("--glove_path", help="word vectors for the augmented rows")
    options = own.parse_args()
    if not options.table:
        material = StagesMaterial(options)
        for run in plan(options):
            with claim(material.work_dir / f"{run.first_stage or run.name}.lock") as mine:
                if mine and not (RESULTS / f"{run.name}.json").exists():
                    print(f"{run.name}: {asdict(run)}", flush=True)
                    write_json(run.name, execute(run, material))
    replace_section("squad_stages", render_stages())


if __name__ == "__main__":
    main()
