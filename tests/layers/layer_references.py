"""The losses between intermediate layers, written out sentence by sentence in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from zoo import zoo_dataset, zoo_model

WITHOUT_QUERIES = ("mpnet", "deberta-v2")
CAUSAL = ("gpt2", "llama", "qwen2")


def sentences(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Rows of their own, without padding; each choice of multiple choice is one."""
    rows = [{k: v[i] for k, v in batch.items()} for i in range(len(next(iter(batch.values()))))]
    found = []
    for row in rows:
        names = [name for name in ("input_ids", "token_type_ids") if name in row]
        if "attention_mask" not in row:
            found.append(
                {k: v[None] for k, v in row.items() if k in ("pixel_values", "input_values")}
            )
            continue
        masks = row["attention_mask"].view(-1, row["attention_mask"].shape[-1]).bool()
        for i, mask in enumerate(masks):
            sentence = {name: row[name].view(len(masks), -1)[i][mask][None] for name in names}
            found.append({**sentence, "attention_mask": mask[mask][None].long()})
    return found


def plain(model: Any) -> Any:
    """A float64 copy with eager attention, its base model alone."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    return model.base_model


def hidden_states_loss(
    student: Any, teacher: Any, batch: dict[str, Tensor], pairs: list[tuple[int, int]],
    projections: Any = None,
) -> float:  # fmt: skip
    """The sum over layer pairs of the mean over tokens of the mean squared difference."""
    total, tokens = 0.0, 0
    ours, theirs = plain(student), plain(teacher)
    for sentence in sentences(batch):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in sentence.items()}
        s = ours(**inputs, output_hidden_states=True).hidden_states
        t = theirs(**inputs, output_hidden_states=True).hidden_states
        for i, j in pairs:
            x = s[i][0]
            if projections is not None:
                linear = projections["embeddings" if i == 0 else "hidden_states"]
                x = x @ linear.weight.double().T + linear.bias.double()
            total += float((x - t[j][0]).square().mean(-1).sum())
        tokens += s[0].shape[1]
    return total / tokens


def least_squares(
    student: Any, teacher: Any, batch: dict[str, Tensor], pairs: list[tuple[int, int]]
) -> dict[str, Any]:
    """The maps, with bias, that make ``hidden_states_loss`` smallest: one of embeddings."""
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {"embeddings": [], "hidden_states": []}
    ours, theirs = plain(student), plain(teacher)
    for sentence in sentences(batch):
        s = ours(**sentence, output_hidden_states=True).hidden_states
        t = theirs(**sentence, output_hidden_states=True).hidden_states
        for i, j in pairs:
            rows["embeddings" if i == 0 else "hidden_states"].append((s[i][0], t[j][0]))
    maps = {}
    for name, found in rows.items():
        x, y = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        solution = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0])
        maps[name] = SimpleNamespace(weight=solution[:-1].T, bias=solution[-1])
    return maps


def probabilities_loss(
    student: Any, teacher: Any, batch: dict[str, Tensor], pairs: list[tuple[int, int]]
) -> float:
    """The sum over layer pairs of the mean over tokens and heads of KL(teacher || student)."""
    total, tokens = 0.0, 0
    ours, theirs = plain(student), plain(teacher)
    for sentence in sentences(batch):
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in sentence.items()}
        s = ours(**inputs, output_attentions=True).attentions
        t = theirs(**inputs, output_attentions=True).attentions
        for i, j in pairs:
            if i == 0:
                continue
            p, q = t[j - 1][0], s[i - 1][0]
            terms = torch.where(p > 0, p * (p.log() - q.log()), 0.0)
            total += float(terms.sum() / p.shape[0])
        tokens += s[0].shape[-1]
    return total / tokens


def scores_loss(
    student: Any, teacher: Any, batch: dict[str, Tensor], pairs: list[tuple[int, int]], *,
    causal: bool,
) -> float:  # fmt: skip
    """The sum over layer pairs of the mean over visible pairs of the squared difference.

    From the queries and keys that hooks on the linear layers of BERT and GPT-2 see.
    """
    total, seen = 0.0, 0
    ours, theirs = plain(student), plain(teacher)
    for sentence in sentences(batch):
        s, t = _scores(ours, sentence), _scores(theirs, sentence)
        length = s[0].shape[-1]
        visible = torch.ones(length, length, dtype=torch.bool)
        visible = visible.tril() if causal else visible
        for i, j in pairs:
            if i > 0:
                squares = (s[i - 1] - t[j - 1]).square().mean(0)
                total += float(squares[visible].sum())
        seen += int(visible.sum())
    return total / seen


def _scores(model: Any, sentence: dict[str, Tensor]) -> list[Tensor]:
    """``(heads, length, length)`` of each layer."""
    outputs: dict[str, list[Tensor]] = {"query": [], "key": [], "c_attn": []}
    hooks = [
        module.register_forward_hook(lambda m, i, o, kind=kind: outputs[kind].append(o))
        for name, module in model.named_modules()
        if (kind := name.rpartition(".")[2]) in outputs
    ]
    model(**sentence)
    for hook in hooks:
        hook.remove()
    fused = [part.split(part.shape[-1] // 3, dim=-1) for part in outputs["c_attn"]]
    queries = outputs["query"] or [part[0] for part in fused]
    keys = outputs["key"] or [part[1] for part in fused]
    heads = model.config.num_attention_heads
    found = []
    for query, key in zip(queries, keys, strict=True):
        q, k = (x[0].view(x.shape[1], heads, -1).transpose(0, 1) for x in (query, key))
        found.append(q @ k.mT / q.shape[-1] ** 0.5)
    return found


def models(task: str, architecture: str, **student_options: Any) -> tuple[Any, Any]:
    """A student with one layer and a teacher with two."""
    student = zoo_model(task, architecture, seed=0, layers=1, **student_options)
    return student, zoo_model(task, architecture, seed=1, layers=2)


def batch_of(task: str) -> dict[str, Tensor]:
    return dict(zoo_dataset(task).with_format("torch")[:])
