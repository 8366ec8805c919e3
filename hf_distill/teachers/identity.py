"""Identities of teachers: by their weights, wherever they are stored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from hf_distill.files import display_name
from hf_distill.heads import unwrapped


@dataclass(frozen=True)
class TeacherIdentity:
    """Identifies a teacher.

    Attributes:
        name: Hub id, or last part of its folder's path.
        revision: commit on the Hub, if that is known.
        weights: SHA-256 of the weights; ``None`` if this process does not have all of them.
        top_k: the number of classes that were stored of cached outputs; ``None`` for all.
        column: the column of predictions that is the teacher, whose numbers ``weights`` is of;
            ``None`` for a model.
    """

    name: str
    revision: str | None
    weights: str | None
    top_k: int | None = None
    column: str | None = None


def identify(source: nn.Module | str | os.PathLike[str], model: nn.Module) -> TeacherIdentity:
    """Identify a teacher by what the user gave and the loaded model, before it is sharded."""
    inner = unwrapped(model)
    if isinstance(source, nn.Module):
        named: Any = getattr(inner, "name_or_path", None)
        source = named or type(inner).__name__
    # DeepSpeed may have sharded the parameters while loading: one shard does not identify a model.
    whole = not any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    return TeacherIdentity(
        display_name(source),
        getattr(getattr(inner, "config", None), "_commit_hash", None),
        weights_hash(model) if whole else None,
    )


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of names, types, shapes and bytes of all weights and buffers.

    Weights that are not in memory (offloaded by ``device_map``) count by name, type and shape.
    """
    digest = sha256()

    def update(name: str, value: Any) -> None:
        if isinstance(value, tuple):  # weight and bias of a layer that torch has quantised
            for place, part in enumerate(value):
                update(f"{name}.{place}", part)
            return
        if not isinstance(value, torch.Tensor):
            digest.update(f"{name} {value}\n".encode())
            return
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if not value.is_meta:
            value = value.detach().dequantize() if value.is_quantized else value.detach()
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())

    model = extract_model_from_parallel(model, keep_torch_compile=False)
    for name, value in sorted(model.state_dict().items()):
        update(name, value)
    return digest.hexdigest()
