"""Models to export: loaded, with adapters merged, and sentence encoders as one module."""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.heads import head_of_class, unwrap_peft
from hf_distill.loading import load_fine_tuned, load_tokenizer, read_config
from hf_distill.students.sentence_embeddings import (
    is_sentence_transformer,
    load_sentence_transformer,
)


def load_source(
    model: str | os.PathLike[str] | nn.Module,
    processing_class: PreTrainedTokenizerBase | None,
) -> tuple[Any, PreTrainedTokenizerBase | None]:
    """Load what is to be exported, on the CPU and in float32, with its tokenizer.

    Args:
        model: a model, which is copied, its folder or its Hub id.
        processing_class: the tokenizer; by default that of the folder or Hub id.

    Raises:
        ValueError: it has no head of a supported task, cannot be loaded, or has adapters that
            cannot be merged.
    """
    source = "" if isinstance(model, nn.Module) else os.fspath(model)
    sentences = load_sentence_transformer(source, "model") if source else model
    if is_sentence_transformer(sentences):
        encoder = SentenceEncoder(sentences)
        return encoder, processing_class or encoder.tokenizer
    if isinstance(model, nn.Module):
        # A copy: the caller's model stays where it is, and as exact as it is.
        return _merged(copy.deepcopy(model)).to("cpu", torch.float32).eval(), processing_class
    config = read_config(source, "model")
    head = head_of_class((config.architectures or [type(config).__name__])[0], config)
    if head is None:
        raise ValueError(f"model={source!r} has no head of a supported task.")
    name = f"model={source!r}"
    loaded = load_fine_tuned(head.auto_model, source, task=head.task, name=name, exported=False)
    if processing_class is None and "input_ids" in inspect.signature(loaded.forward).parameters:
        processing_class = load_tokenizer(source, name=name)
    return loaded, processing_class


class SentenceEncoder(nn.Module):
    """Encoder with pooling and what follows it, such as a normalization.

    Args:
        model: a ``SentenceTransformer``; it is copied, and stays where it is.

    Raises:
        ValueError: it has other modules, or leaves the tokens of the prompt out.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        names = [type(module).__name__ for module in model]
        if names[:2] != ["Transformer", "Pooling"]:
            raise ValueError(
                f"model is a SentenceTransformer of {', '.join(names)}: only a Transformer "
                "followed by a Pooling can be exported."
            )
        if not model[1].include_prompt:
            raise ValueError(
                "model has a Pooling with include_prompt=False: how long the prompt is cannot be "
                "told from tokens. Set include_prompt=True if its prompts are empty."
            )
        self.modules_in_order = copy.deepcopy(nn.ModuleList(model)).to("cpu").float().eval()
        self.width = model.truncate_dim
        self.config = self.encoder.config
        self.tokenizer: PreTrainedTokenizerBase = copy.deepcopy(model.tokenizer)
        if model.max_seq_length is not None:
            self.tokenizer.model_max_length = model.max_seq_length

    @property
    def encoder(self) -> PreTrainedModel:
        """The model of transformers inside."""
        return cast(Any, self.modules_in_order[0]).model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return ``sentence_embedding``, ``(batch, width)``."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        for module in self.modules_in_order:
            features = module(features)
        return {"sentence_embedding": features["sentence_embedding"][:, : self.width]}


def _merged(model: Any) -> Any:
    """Return a model with the weights of its PEFT adapters in its own."""
    if hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    if unwrap_peft(model) is not model:
        raise ValueError(
            f"model is a {type(model).__name__} with adapters that cannot be merged into its "
            "weights, such as a trained prompt; choose adapters of weights, such as LoRA."
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # by add_adapter or load_adapter
        adapted: list[Any] = [one for one in model.modules() if hasattr(one, "base_layer")]
        for module in adapted:
            module.merge()
    return model
