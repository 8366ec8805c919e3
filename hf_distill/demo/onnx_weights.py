"""Reads the weights of a BERT encoder out of an ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_bert_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of the encoder in an ONNX file.

    Biases, embeddings and norms keep their PyTorch names in an export. The weight of a linear
    layer loses its own (``onnx::MatMul_123``) and is stored transposed; it is found through the
    addition of its bias.

    Args:
        path: an export of a BERT encoder with float32 weights.

    Returns:
        Tensors by the names of ``transformers.BertModel``, in PyTorch's layout.

    Raises:
        ValueError: if the file is no ONNX file, is cut off, or has no BERT encoder.
        ModuleNotFoundError: if the package ``onnx`` is not installed.
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
    """The name without the module that was wrapped round the encoder for the export."""
    starts = [name.find(part) for part in ("embeddings.", "encoder.") if part in name]
    return name[min(starts) :]
