"""The worker of Haystack 1: its trainers, data silos, data loader and optimizer.

``FARMReader.distil_prediction_layer_from`` makes the same objects; what is left out is the reading
of SQuAD files, in whose place a processor hands out the rows. Haystack runs the teacher over all
data before the first step. Where the teacher's pass belongs to a step, its ``DistillationDataSilo``
is asked for one batch at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from haystack.modeling.data_handler.data_silo import DataSilo, DistillationDataSilo
from haystack.modeling.data_handler.dataloader import NamedDataLoader
from haystack.modeling.model.adaptive_model import AdaptiveModel
from haystack.modeling.model.optimization import initialize_optimizer
from haystack.modeling.training.base import DistillationTrainer, TinyBERTDistillationTrainer
from haystack.modeling.utils import set_all_seeds
from torch.utils.data import RandomSampler, TensorDataset
from transformers import BertModel
from worker import LEARNING_RATE, MAX_GRAD_NORM, Gate, Setting, described, serve

CPU = torch.device("cpu")
NOTES = {
    "qa": "teacher by its DistillationDataSilo, batch by batch; start and end are added, not "
    "averaged; also computes the label loss, with weight 0",
    "qa_cached": "also computes the label loss, with weight 0",
    "attention": "attentions after dropout; also computes pooler and head",
}


class Processor:
    """Hands out rows that are tokenised already, as a processor does after reading a file."""

    def __init__(self, setting: Setting, vocabulary: int) -> None:
        rows = setting.load_rows()
        positions = torch.stack([rows["start_positions"], rows["end_positions"]], dim=-1)
        self._columns = {
            "input_ids": rows["input_ids"],
            "padding_mask": rows["attention_mask"],
            "segment_ids": rows["token_type_ids"],
            "labels": positions.unsqueeze(1),
        }
        self.tokenizer = range(vocabulary)  # only its length is asked for
        self.tasks = {
            "question_answering": {
                "label_list": ["start_token", "end_token"],
                "metric": "squad",
                "label_tensor_name": "labels",
            }
        }
        self.train_filename = self.dev_filename = self.test_filename = None
        self.dev_split = 0.0

    def dataset_from_dicts(
        self, dicts: list[int], indices: Any = None
    ) -> tuple[TensorDataset, list[str], set[int]]:
        """Return the rows with these numbers."""
        columns = [column[dicts] for column in self._columns.values()]
        return TensorDataset(*columns), list(self._columns), set()

    def log_problematic(self, problematic_sample_ids: Any) -> None:
        """There are none."""


class FreshBatches:
    """Batches whose teacher outputs are computed when their turn comes."""

    def __init__(self, silo: DataSilo, setting: Setting) -> None:
        self._silo = silo
        self._setting = setting

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Run the teacher on a batch, and collate it."""
        size = self._setting.batch_size
        for first in range(0, size * self._setting.steps, size):
            dataset, names = self._silo._get_dataset(None, dicts=list(range(first, first + size)))
            yield from NamedDataLoader(dataset=dataset, batch_size=size, tensor_names=names)


def all_batches(silo: DataSilo, setting: Setting) -> NamedDataLoader:
    """Return the loader that a silo makes of all rows."""
    numbers = list(range(setting.batch_size * setting.steps * setting.accumulation))
    dataset, names = silo._get_dataset(None, dicts=numbers)
    return NamedDataLoader(
        dataset=dataset,
        sampler=RandomSampler(dataset),
        batch_size=setting.batch_size,
        tensor_names=names,
    )


def load(folder: str, implementation: str) -> AdaptiveModel:
    """Load a model of transformers as Haystack does, which has no option for attention."""
    BertModel._supports_sdpa = implementation != "eager"
    return AdaptiveModel.convert_from_transformers(
        folder, device=CPU, task_type="question_answering"
    )


def resumed(setting: Setting, gate: Gate, **options: Any) -> Any:
    """Load a trainer from its checkpoint, as the reader does."""
    checkpoints = Path(setting.output)
    for step in range(setting.save_at, setting.steps):  # an interrupted run has not saved these
        shutil.rmtree(checkpoints / f"epoch_0_step_{step}")
    options |= {
        "checkpoint_root_dir": checkpoints,
        "resume_from_checkpoint": f"epoch_0_step_{setting.save_at - 1}",
    }
    try:
        return DistillationTrainer.create_or_load_checkpoint(**options)
    except Exception as error:
        gate.obstacle = described(error)["error"]
    # On import Haystack forbids PyTorch to read what it saves itself; without a GPU there is no
    # state of its random numbers.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "0"
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    torch.cuda.set_rng_state = lambda *_: None
    return DistillationTrainer.create_or_load_checkpoint(**options)


def distil(setting: Setting) -> None:
    """Train, as the gate lets it."""
    gate = Gate(setting, "farm-haystack", NOTES[setting.task])
    set_all_seeds(42)  # as the reader does
    teacher, student = (
        load(folder, setting.implementation) for folder in (setting.teacher, setting.student)
    )
    teacher.eval()
    processor = Processor(setting, student.language_model.model.config.vocab_size)
    common: dict[str, Any] = {
        "processor": processor,
        "batch_size": setting.batch_size,
        "automatic_loading": False,
    }
    if setting.task == "attention":
        silo = DataSilo(**common)
    else:
        reader = SimpleNamespace(inferencer=SimpleNamespace(model=teacher))
        silo = DistillationDataSilo(
            teacher_model=reader, teacher_batch_size=setting.batch_size, device=CPU, **common
        )
    fresh = setting.task == "qa"
    batches = FreshBatches(silo, setting) if fresh else all_batches(silo, setting)
    silo.loaders = {"train": batches, "dev": None, "test": None}
    # The default is AdamW without `fused`, which is slower.
    student, optimizer, schedule = initialize_optimizer(
        model=student,
        n_batches=setting.steps * setting.accumulation,
        n_epochs=1,
        device=CPU,
        learning_rate=setting.sgd or LEARNING_RATE,
        optimizer_opts={"name": "SGD"}
        if setting.sgd
        else {"name": "AdamW", "weight_decay": 0.0, "fused": True},
        schedule_opts={"name": "Constant"}
        if setting.sgd
        else {"name": "LinearWarmup", "warmup_proportion": 0.0},
        grad_acc_steps=setting.accumulation,
    )
    options: dict[str, Any] = {
        "model": student,
        "optimizer": optimizer,
        "lr_schedule": schedule,
        "data_silo": silo,
        "epochs": 1,
        "n_gpu": 0,
        "device": CPU,
        "evaluate_every": 0,
        "evaluator_test": False,
        "disable_tqdm": True,
        "max_grad_norm": None if setting.sgd else MAX_GRAD_NORM,
        "grad_acc_steps": setting.accumulation,
    }
    if setting.save_at:
        options |= {"checkpoint_root_dir": Path(setting.output), "checkpoint_every": 1}
    if setting.task == "attention":
        trainer = TinyBERTDistillationTrainer(teacher_model=teacher, **options)
    else:
        trainer = DistillationTrainer(
            distillation_loss="kl_div",
            distillation_loss_weight=1.0,
            temperature=setting.temperature,
            **options,
        )
    if setting.resume:
        trainer = resumed(setting, gate, data_silo=silo, model=student, optimizer=optimizer)
    gate.hold(trainer, "compute_loss", student)
    trainer.train()
    gate.end()


if __name__ == "__main__":
    serve(distil)
