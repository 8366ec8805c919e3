"""Fewer tokens: the vocabulary that a corpus uses, for model and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility.tokenizers import check_vocabulary, keep_tokenizer, vocabulary_size
from hf_distill.compatibility.vocabulary_map import (
    MARK,
    VocabularyMap,
    special_ids,
    with_moved_ids,
)
from hf_distill.restoring import preserve_rng_state
from hf_distill.students.tokenizer_json import needed_ids, read_tokenizer, renumbered
from hf_distill.students.weights import empty_like

Text = str | Sequence[str]
_AT_ONCE = 1000
_SHOWN = 80


@torch.inference_mode(False)  # whose tensors cannot be trained
def trim_vocabulary(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    keep_characters: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model and its tokenizer with the tokens that a corpus uses, and no others.

    Kept are the tokens of the texts, special and added tokens, what the configuration names, the
    bytes, and, unless that is switched off, all single characters, so that any text can still be
    encoded. Tokens keep their order and get new ids. On a text made of kept tokens the trimmed
    model's logits are those of the model: the same rows of its embeddings are read. (Other texts
    are cut into smaller pieces.) Of a language model's logits the columns of the kept tokens stay.

    A WordPiece or Unigram tokenizer loses entries; of BPE every merge on the way to a kept token
    is kept. Embeddings, output layer and its bias are cut, tied weights stay tied, and special ids
    in the configurations of model and generation are renumbered.

    The tokenizer carries the ids that its tokens had (``teacher_vocabulary`` in
    ``tokenizer_config.json``) wherever it is saved, and the configuration a hash of them
    (``trimmed_vocabulary``). With both, ``DistillationTrainer``, ``cache_teacher_outputs`` and
    ``check_pair`` let a teacher with the whole vocabulary teach the trimmed student: its ids are
    mapped, and of a language-modelling teacher's logits the kept columns are compared, so that its
    probability of dropped tokens is dropped as well.

    Args:
        model: a text model of transformers with a vocabulary; it is not changed.
        processing_class: its fast tokenizer (WordPiece, Unigram or BPE); it is not changed.
        texts: the corpus, as strings, or as lists of words for data that comes in words.
        keep_characters: also keep every token that is a single character (or the continuation of a
            word by one), used or not.

    Returns:
        The trimmed model, in evaluation mode if ``model`` is, and the trimmed tokenizer.

    Raises:
        ValueError: tokenizer or model is of a kind that cannot be trimmed, they do not fit
            together, texts are missing, or a text would be encoded differently; names the text.
    """
    trimming = Trimming(model, processing_class, texts, keep_characters=keep_characters)
    return trimming.of(model), trimming.tokenizer


class Trimming:
    """A trimmed tokenizer, and how models of the tokenizer's vocabulary are cut to it.

    Args:
        model: has the vocabulary.
        processing_class, texts, keep_characters: as in ``trim_vocabulary``.
        name: what errors call ``texts``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        texts: Iterable[Text],
        *,
        keep_characters: bool = True,
        name: str = "texts",
    ) -> None:
        corpus = _checked_corpus(texts, name)
        content = read_tokenizer(processing_class)
        size = _checked_size(model, processing_class)
        encoded = _encode(processing_class, corpus)
        used = {*np.unique(np.concatenate(encoded)).tolist()}
        used |= {token["id"] for token in content["added_tokens"]}
        named = {*processing_class.all_special_ids, *special_ids(model.config)}
        if model.can_generate():
            named |= special_ids(model.generation_config)
        used |= {i for i in named if i is not None and 0 <= i < size}
        ids = sorted(used | needed_ids(content, used, keep_characters))
        self._numbers = {old: new for new, old in enumerate(ids)}
        self._vocabulary = VocabularyMap(ids, size)
        self.tokenizer = renumbered(processing_class, content, self._numbers)
        self._vocabulary.store(self.tokenizer)
        again = _encode(self.tokenizer, corpus)
        for text, before, after in zip(corpus, encoded, again, strict=True):
            if not np.array_equal(before, np.asarray(ids)[after]):
                raise ValueError(
                    f"{name}: {_shown(text)} would be encoded otherwise with the trimmed "
                    "vocabulary; leave this text out"
                    + ("." if keep_characters else ", or set keep_characters=True.")
                )

    def of(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a model with the rows of the tokens that are left; it keeps the tokenizer."""
        trimmed = _cut(model, self._vocabulary, self._numbers)
        keep_tokenizer(trimmed, self.tokenizer)
        return trimmed


def _checked_corpus(texts: Any, name: str) -> list[Text]:
    """Return the texts as a list.

    Raises:
        ValueError: there are none, all are blank, or one is neither a string nor a list of words.
    """
    is_list = isinstance(texts, Iterable) and not isinstance(texts, str | Mapping)
    corpus: list[Any] = list(texts) if is_list else []
    if not corpus:
        given = "one string" if isinstance(texts, str) else "empty"
        given = given if is_list or isinstance(texts, str) else f"a {type(texts).__name__}"
        raise ValueError(f"{name} is {given}; give a list of the texts whose tokens are kept.")
    in_words = not isinstance(corpus[0], str)
    for index, text in enumerate(corpus):
        words = isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
        if not (words if in_words else isinstance(text, str)):
            raise ValueError(
                f"{name}: the text {index} is {_shown(str(text))}, a {type(text).__name__}; give "
                "strings alone, or lists of words alone."
            )
    if not any("".join(text).strip() for text in corpus):
        raise ValueError(
            f"{name} has {len(corpus)} texts, and all of them are blank: nothing would be left of "
            "the vocabulary. Give the texts whose tokens are kept."
        )
    return corpus


def _checked_size(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens a model has embeddings for.

    Raises:
        ValueError: it is not a text model with one vocabulary, or lacks tokens of its tokenizer.
    """
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        raise ValueError(
            f"model is a {name}; a vocabulary is trimmed with a text model of transformers."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"model is a quantised {name}, whose embeddings cannot be cut; trim it before."
        )
    size, rows = vocabulary_size(model), getattr(model.get_input_embeddings(), "weight", None)
    if size is None or rows is None or len(rows) != size:
        raise ValueError(
            f"model is a {name} whose embeddings "
            f"({'none' if rows is None else len(rows)} rows) are not those of its configuration's "
            f"vocabulary ({size}); models over characters or bytes, and those that join several, "
            "cannot be trimmed."
        )
    check_vocabulary(tokenizer, model, "model")
    return size


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[NDArray[Any]]:
    """Return the ids of texts, or of lists of words."""
    found: list[NDArray[Any]] = []
    for start in range(0, len(texts), _AT_ONCE):
        batch = list(texts[start : start + _AT_ONCE])
        words = not isinstance(batch[0], str)
        encoded = tokenizer(batch, is_split_into_words=words, verbose=False)["input_ids"]
        found += [np.asarray(ids, dtype=np.int64) for ids in encoded]
    return found


def _cut(
    model: PreTrainedModel, vocabulary: VocabularyMap, numbers: Mapping[int, int]
) -> PreTrainedModel:
    """Return the model with the rows of the vocabulary's tokens.

    Raises:
        ValueError: a weight depends on the size of the vocabulary in another way.
    """
    config: Any = with_moved_ids(model.config, numbers)
    config.vocab_size = len(vocabulary.ids)
    config.name_or_path = ""
    setattr(config, MARK, vocabulary.mark)
    with preserve_rng_state():
        trimmed: Any = empty_like(model, deepcopy(config))
    trimmed.to(model.device)
    shapes = {name: weight.shape for name, weight in trimmed.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        axes = [axis for axis, n in enumerate(weight.shape) if n != shapes[name][axis]]
        if len(axes) > 1 or (axes and weight.shape[axes[0]] != vocabulary.size):
            raise ValueError(
                f"model is a {type(model).__name__} whose weight {name} "
                f"{tuple(weight.shape)} depends on the size of the vocabulary in a way that cannot "
                "be trimmed, as an adaptive softmax does."
            )
        kept = weight.index_select(axes[0], vocabulary.ids.to(weight.device)) if axes else weight
        weights[name] = kept.clone()
    trimmed.load_state_dict(weights, assign=True)
    trimmed.tie_weights()
    if model.can_generate():
        trimmed.generation_config = with_moved_ids(model.generation_config, numbers)
    trimmed.train(model.training)
    return trimmed


def _shown(text: Text) -> str:
    shown = text if isinstance(text, str) else " ".join(text)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…")
