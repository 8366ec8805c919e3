"""Students of sentence-transformers models, for that package's own trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_distill.students.basis import basis_of
from hf_distill.students.fitting import Ridge

_BATCH = 32
_MOST_TEXTS = 4096


def is_sentence_transformer(model: object) -> bool:
    """Return whether a model is a ``SentenceTransformer``, without importing the package."""
    return any(
        base.__name__ == "SentenceTransformer"
        and base.__module__.partition(".")[0] == "sentence_transformers"
        for base in type(model).__mro__
    )


def create_sentence_student(
    teacher: Any, texts: Sequence[str], create: Callable[..., PreTrainedModel]
) -> Any:
    """Make a ``SentenceTransformer`` whose encoder is a student of the teacher's encoder.

    It keeps the pooling and whatever follows it. If the student is narrower, a ``Dense`` after the
    pooling maps its embeddings to the teacher's width: ridge regression of the teacher's pooled
    embeddings on the student's.

    Args:
        teacher: a transformer, a pooling and any further modules.
        texts: what the map is fitted on; may be empty if the widths are equal.
        create: makes the student of an encoder, given its tokenizer as ``processing_class``.

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
    body, pooling = modules[:2]
    encoder = create(body.model, processing_class=body.tokenizer)
    body = copy.deepcopy(body, {id(body.model): encoder})
    narrow, wide = encoder.config.hidden_size, pooling.embedding_dimension
    if narrow == wide:
        return _assembled(teacher, [body, *copy.deepcopy(modules[1:])])
    if not (len(texts) and isinstance(texts[0], str)):
        raise ValueError("calibration_data must be texts for a narrower SentenceTransformer.")
    own_pooling = type(pooling)(
        narrow, pooling_mode=pooling.pooling_mode, include_prompt=pooling.include_prompt
    )
    start = _assembled(teacher, [body, own_pooling])
    modes = pooling.pooling_mode
    parts = 1 if isinstance(modes, str) else len(modes)
    basis = basis_of(encoder)
    guess = torch.zeros(wide * parts, narrow * parts, dtype=torch.float64)
    if basis is not None:
        guess = torch.block_diag(*[basis.T.double()] * parts)
    fit = Ridge(guess)
    texts = texts[:_MOST_TEXTS]
    with torch.no_grad():
        for begin in range(0, len(texts), _BATCH):
            some = list(texts[begin : begin + _BATCH])
            fit.add(_pooled(start, [body, own_pooling], some), _pooled(teacher, modules[:2], some))
    weight, bias = fit.solve()
    from sentence_transformers.sentence_transformer.modules import Dense

    dense = Dense(
        narrow * parts,
        wide * parts,
        activation_function=nn.Identity(),
        init_weight=weight.float(),
        init_bias=bias.float(),
    )
    return _assembled(teacher, [body, own_pooling, dense, *copy.deepcopy(modules[2:])])


def _pooled(model: Any, modules: Sequence[Any], texts: list[str]) -> Tensor:
    features: Any = model.preprocess(texts)
    features = {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    for module in modules:
        features = module.eval()(features)
    embedding: Tensor = features["sentence_embedding"]
    return embedding.cpu()


def _assembled(teacher: Any, modules: list[Any]) -> Any:
    made = type(teacher)(
        modules=modules,
        prompts=dict(teacher.prompts),
        default_prompt_name=teacher.default_prompt_name,
        similarity_fn_name=teacher.similarity_fn_name,
        device=str(teacher.device),
    )
    return made.eval()
