"""Students of sentence-transformers models, for that package's own trainer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import trange
from transformers import PreTrainedModel

from hf_distill.least_squares import LeastSquares
from hf_distill.loading import UnsafeSourceError, find_file, hub_tried_once
from hf_distill.restoring import evaluating
from hf_distill.students.regression import RIDGE, Ridge

_BATCH = 32
_MOST_TEXTS = 1024


def is_sentence_transformer(model: object) -> bool:
    """Return whether a model is a ``SentenceTransformer``, without importing the package."""
    return any(
        base.__name__ == "SentenceTransformer"
        and base.__module__.partition(".")[0] == "sentence_transformers"
        for base in type(model).__mro__
    )


def load_sentence_transformer(source: str, who: str = "teacher") -> Any | None:
    """Load a ``SentenceTransformer``, in float32; ``None`` if the source is of another kind.

    Args:
        source: a folder or a Hub id.
        who: what errors call it.

    Raises:
        ValueError: the package is missing, or a module is pickled or not one of the package.
    """
    file = find_file(source, "modules.json")
    modules = [] if file is None else json.loads(Path(file).read_text("utf-8"))
    if not any(module["type"].endswith("Pooling") for module in modules):
        return None
    for module in modules:
        pickled, safe = (
            f"{module['path']}/{name}".strip("/")
            for name in ("pytorch_model.bin", "model.safetensors")
        )
        if not module["type"].startswith("sentence_transformers."):
            raise UnsafeSourceError(
                f"{who}={source!r} has a module {module['type']}, and code that comes with a "
                "model is never run here: load it yourself and pass the module."
            )
        if find_file(source, pickled) and not find_file(source, safe):
            raise UnsafeSourceError(
                f"{who}={source!r} has pickled weights, {pickled}, which are refused: save it "
                "again with SentenceTransformer.save_pretrained."
            )
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{who}={source!r} is a model of sentence-transformers, with a pooling: install that "
            "package (pip install sentence-transformers), or name a folder with the encoder alone "
            "(AutoModel.from_pretrained(…).save_pretrained)."
        ) from error
    options = {"use_safetensors": True, "dtype": torch.float32}
    with hub_tried_once(source):
        return SentenceTransformer(source, device="cpu", model_kwargs=options)


def create_sentence_student(
    teacher: Any, texts: Sequence[str], create: Callable[..., PreTrainedModel], *, seed: int
) -> Any:
    """Make a ``SentenceTransformer`` whose encoder is a student of the teacher's encoder.

    It keeps the pooling and whatever follows it. If the student is narrower, a ``Dense`` after the
    pooling maps its embeddings to the teacher's width: ridge regression of the teacher's pooled
    embeddings on the student's.

    Args:
        teacher: a transformer, a pooling and any further modules.
        texts: what the map is fitted on; may be empty if the widths are equal.
        create: makes the student of an encoder, given its tokenizer as ``processing_class``.
        seed: of the choice of texts for the map, of which 1,024 are enough.

    Raises:
        ValueError: the teacher has other modules, or texts are missing.
    """
    modules = list(teacher)
    names = [type(module).__name__ for module in modules]
    if names[:2] != ["Transformer", "Pooling"]:
        raise ValueError(
            f"teacher is a SentenceTransformer of {', '.join(names)}: only a Transformer followed "
            "by a Pooling can be made smaller."
        )
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("calibration_data must be a list of texts for a SentenceTransformer.")
    body, pooling = modules[:2]
    encoder = create(body.model, processing_class=body.tokenizer)
    body = copy.deepcopy(body, {id(body.model): encoder})
    narrow, wide = encoder.config.hidden_size, pooling.embedding_dimension
    if narrow == wide:
        return _assembled(teacher, [body, *copy.deepcopy(modules[1:])])
    own_pooling = type(pooling)(
        narrow, pooling_mode=pooling.pooling_mode, include_prompt=pooling.include_prompt
    )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    with evaluating(teacher):
        weight, bias = _fitted(
            (_assembled(teacher, [body, own_pooling]), [body, own_pooling]),
            (teacher, modules[:2]),
            [texts[index] for index in order[:_MOST_TEXTS]],
        )
    from sentence_transformers.sentence_transformer.modules import Dense

    dense = Dense(
        weight.shape[1],
        weight.shape[0],
        activation_function=nn.Identity(),
        init_weight=weight.float(),
        init_bias=bias.float(),
    ).to(encoder.dtype)
    return _assembled(teacher, [body, own_pooling, dense, *copy.deepcopy(modules[2:])])


_Model = tuple[Any, Sequence[Any]]
"""A SentenceTransformer, and its modules up to the pooling."""


def _fitted(student: _Model, teacher: _Model, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the map from the student's pooled embeddings to the teacher's.

    There are more tokens than texts: their map is the first guess, which the texts correct.
    """
    of_tokens, pooled = LeastSquares(), []
    by_length = sorted(texts, key=len, reverse=True)  # so batches have little padding
    for begin in trange(0, len(texts), _BATCH, desc="Embeddings", unit="batch", leave=False):
        some = by_length[begin : begin + _BATCH]
        (narrow, ours), (wide, theirs) = (_run(*model, some) for model in (student, teacher))
        of_tokens.add(narrow, wide)
        pooled.append((ours, theirs))
    guess, _ = of_tokens.solve(RIDGE)
    parts = pooled[0][0].shape[1] // len(guess.T)
    fit = Ridge(torch.block_diag(*[guess] * parts))
    for ours, theirs in pooled:
        fit.add(ours, theirs)
    return fit.solve()


@torch.no_grad()
def _run(model: Any, modules: Sequence[Any], texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return the states of all tokens, and the pooled embeddings."""
    features: Any = model.preprocess(texts)
    features = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    for module in modules:
        features = module(features)
    tokens: Tensor = features["token_embeddings"][features["attention_mask"].bool()]
    embeddings: Tensor = features["sentence_embedding"]
    return tokens.float().cpu(), embeddings.float().cpu()


def _assembled(teacher: Any, modules: list[Any]) -> Any:
    made = type(teacher)(
        modules=modules,
        prompts=dict(teacher.prompts),
        default_prompt_name=teacher.default_prompt_name,
        similarity_fn_name=teacher.similarity_fn_name,
        truncate_dim=teacher.truncate_dim,
        device=str(teacher.device),
    )
    return made.eval()
