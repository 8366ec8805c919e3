"""Models that compute what a narrower one does, so that the best student of them is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import zoo_model

from hf_distill.students.families import FAMILIES, Attention, Stack
from hf_distill.students.weights import Map, find

GROUPED = ("llama", "mistral", "qwen2", "qwen3")


def model_of(task: str, name: str, seed: int, size: int, **options: Any) -> Any:
    """A model of a width, with heads of 4 (in groups of 2, where a family has them)."""
    sizes: dict[str, Any] = {
        "hidden_size": size,
        "num_attention_heads": size // 4,
        "intermediate_size": 2 * size,
    }
    if name == "gpt2":
        sizes |= {"n_embd": size, "n_head": size // 4, "n_inner": 2 * size}
        sizes["layer_norm_epsilon"] = 1e-12
    if name == "modernbert":
        sizes["norm_eps"] = 1e-12
    if name in ("t5", "mt5"):
        sizes |= {"d_model": size, "num_heads": size // 4, "d_kv": 4, "d_ff": 2 * size}
        sizes |= {"layer_norm_epsilon": 1e-12, "initializer_factor": 1.0}
    if name in ("bart", "mbart"):
        sizes |= {"d_model": size}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_attention_heads": size // 4, f"{side}_ffn_dim": 2 * size}
    if name in GROUPED:
        sizes |= {"num_key_value_heads": size // 8, "head_dim": 4}
    return zoo_model(task, name, seed=seed, layers=2, **{**sizes, **options}).eval()


def rotation(wide: int, size: int) -> Tensor:
    """Orthonormal columns that map a vector of ones to a multiple of a vector of ones."""
    torch.manual_seed(5)
    axes = []
    for rows in (wide, size):
        draw = torch.randn(rows, size, dtype=torch.float64)
        draw[:, 0] = 1.0
        axes.append(torch.linalg.qr(draw).Q)
        axes[-1][:, 0] = axes[-1][:, 0].abs()
    return (axes[0] @ axes[1].T).float()


def embed(core: Any, model: Any, turn: Tensor) -> Any:
    """Let a model compute what ``core`` does in a stream of ``turn @`` the core's.

    Its other heads and neurons do nothing.
    """
    stacks = stacks_of(core)
    wide, size = turn.shape
    keeps_axes = bool((turn.abs().sum(0) == 1).all())
    seen = set()
    # T5 scales what it decodes, and BART what it embeds and decodes with, by their widths.
    decoded = (wide / size) ** 0.5 if scales_with_the_width(core) else 1.0

    def linear(one: Map, other: Map, reads: bool, writes: bool) -> None:
        weight, bias = one.weight, one.bias
        weight = weight @ turn.T if reads else weight
        if writes:
            weight, bias = turn @ weight, None if bias is None else turn @ bias
        other.weight.zero_()[: weight.shape[0], : weight.shape[1]] = weight
        if bias is not None:
            assert other.bias is not None
            other.bias.zero_()[: len(bias)] = bias

    def norm(one: Any, other: Any, factor: float = 1.0) -> None:
        if not keeps_axes:
            one.weight.fill_(1.3)
        scales = turn.abs() @ one.weight if keeps_axes else one.weight[0].expand(wide)
        other.weight.copy_(factor * (size / wide) ** 0.5 * scales)
        if getattr(one, "bias", None) is not None:
            one.bias.sub_(one.bias.mean())  # a LayerNorm's stream has no mean
            other.bias.copy_(factor * turn @ one.bias)

    with torch.no_grad():
        for path in dict.fromkeys(path for stack in stacks for path in stack.tables):
            one, other = find(core.base_model, path), find(model.base_model, path)
            if isinstance(one, nn.Conv2d):
                other.weight.copy_((turn @ one.weight.flatten(1)).view_as(other.weight))
                other.bias.copy_(turn @ one.bias)
            elif one is not None:
                source, target = (getattr(table, "weight", table) for table in (one, other))
                scale = getattr(one, "embed_scale", 1.0) / getattr(other, "embed_scale", 1.0)
                target.copy_(scale * source @ turn.T)
                seen.add(id(target))
        for stack in stacks:
            layers = [find(m.base_model, stack.layers) for m in (core, model)]
            for one, other in zip(*layers, strict=True):
                for block in stack.blocks:
                    attends = isinstance(block, Attention)
                    parts = (block.query, block.key, block.value) if attends else block.readers
                    for part in parts:
                        if find(one, part.path) is not None:
                            linear(Map.at(one, part), Map.at(other, part), True, False)
                    linear(
                        Map(find(one, block.writer)), Map(find(other, block.writer)), False, True
                    )
                    if not isinstance(find(one, block.norm), nn.Identity):
                        last = one is layers[0][-1] and block is stack.blocks[-1]
                        last &= stack is stacks[-1] and not stack.pre_norm
                        norm(find(one, block.norm), find(other, block.norm), decoded**last)
                for name in ("q_norm", "k_norm"):
                    scale = find(one, f"self_attn.{name}.weight")
                    if scale is not None:
                        find(other, f"self_attn.{name}.weight").copy_(scale)
            for path in stack.head_tables:
                table = find(core.base_model, path).weight
                find(model.base_model, path).weight.zero_()[:, : table.shape[1]] = table
            for path in (stack.embedding_norm, stack.final_norm):
                if path is not None:
                    is_decoded = path == stacks[-1].final_norm
                    norm(find(core.base_model, path), find(model.base_model, path),
                         decoded**is_decoded)  # fmt: skip
        head = model.get_output_embeddings()  # of a T5, inside of the base
        inside = {id(module) for module in model.base_model.modules() if module is not head}
        for name, module in model.named_modules():
            if id(module) in inside or id(getattr(module, "weight", None)) in seen:
                continue
            if isinstance(module, nn.Linear):  # a head: the first reads the stream
                linear(Map(core.get_submodule(name)), Map(module), not seen & {0}, False)
                seen.add(0)
            elif isinstance(module, nn.LayerNorm):
                pytest.fail(f"{name} is not planted")
    return model


def stacks_of(model: Any) -> list[Stack]:
    """The stacks that a model has: an encoder and a decoder, or one."""
    family = FAMILIES[model.config.model_type]
    found = [stack for stack in (family.stack, family.decoder) if stack is not None]
    return [stack for stack in found if find(model.base_model, stack.layers) is not None]


def scales_with_the_width(model: Any) -> bool:
    """Whether logits of a decoder fall or rise with the width, for equal weights."""
    if model.get_output_embeddings() is None:
        return False
    return any(
        getattr(model.config, n, False) for n in ("scale_decoder_outputs", "scale_embedding")
    )
