"""A teacher with another tokenizer that reads exactly as one with the student's would."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from runs import arguments
from tiny import bert_config, tokenizer
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer

from hf_distill import DistillationTrainer

TEXTS = ["a good film", "bad. so long, it went on and on", "ok", "not bad - not good"] * 2


def shuffled(fast: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The same tokenizer with other ids, and the new id of each old one."""
    size = len(fast)
    new_ids = torch.randperm(size, generator=torch.Generator().manual_seed(3)).tolist()
    content = json.loads(fast.backend_tokenizer.to_str())
    content["model"]["vocab"] = {w: new_ids[i] for w, i in content["model"]["vocab"].items()}
    for added in content["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    for name in ("cls", "sep"):
        word, number = content["post_processor"][name]
        content["post_processor"][name] = [word, new_ids[number]]
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        **{f"{n}_token": getattr(fast, f"{n}_token") for n in ("pad", "unk", "cls", "sep", "mask")},
        model_input_names=fast.model_input_names,
    )
    return other, new_ids


def with_other_ids(model: nn.Module, new_ids: list[int]) -> Any:
    """The model, for the ids of a shuffled tokenizer."""
    other: Any = copy.deepcopy(model)
    words = other.get_input_embeddings().weight
    with torch.no_grad():
        words[torch.tensor(new_ids)] = words[: len(new_ids)].clone()
    other.config.pad_token_id = new_ids[0]
    return other


def trained(cls: Any, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = cls(bert_config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def run(tmp_path: Path, student: Any, *, evaluate: bool = True, **options: Any) -> Trainer:
    """A short training of a copy of the student; its log and weights are compared."""
    given = {n: options.pop(n) for n in ("teacher_model", "train_dataset", "processing_class")}
    named = (
        "eval_dataset", "data_collator", "teacher_processing_class",
        "compute_metrics",
    )  # fmt: skip
    given |= {name: options.pop(name) for name in named if name in options}
    trainer = DistillationTrainer(
        model=copy.deepcopy(student),
        args=arguments(tmp_path, **options),
        **given,
    )
    trainer.train()
    if evaluate:
        trainer.evaluate(given["train_dataset"])
    return trainer


def losses(trainer: Trainer) -> list[dict[str, float]]:
    kept = [
        {k: v for k, v in entry.items() if "loss" in k or "grad" in k}
        for entry in trainer.state.log_history
    ]
    return [entry for entry in kept if "train_loss" not in entry]


__all__ = ["TEXTS", "losses", "run", "shuffled", "tokenizer", "trained", "with_other_ids"]
