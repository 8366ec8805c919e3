"""Reads the weights of a BERT encoder out of an ONNX file, without the ``onnx`` package.

An ONNX file is one protocol-buffers message; the field numbers used here are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Only what an encoder export has is read:
float32 tensors stored in the file itself, and which of them each node takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE = 1, 2, 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_FLOAT32 = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class _Node:
    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


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
    """
    try:
        tensors, nodes = _read_graph(memoryview(path.read_bytes()))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole ONNX file.") from error
    weights = {
        _torch_name(name): torch.from_numpy(tensor)
        for name, tensor in tensors.items()
        if "embeddings." in name or "encoder." in name
    }
    producers = {output: node for node in nodes for output in node.outputs}
    for node in nodes:
        if node.kind != "Add":
            continue
        biases = [name for name in node.inputs if name in tensors and name.endswith(".bias")]
        products = [
            producers[name]
            for name in node.inputs
            if name in producers and producers[name].kind == "MatMul"
        ]
        for bias, product in zip(biases, products, strict=False):
            (matrix,) = (name for name in product.inputs if name in tensors)
            name = _torch_name(bias).removesuffix("bias") + "weight"
            weights[name] = torch.from_numpy(tensors[matrix]).T.contiguous()
    if not weights:
        raise ValueError(f"{path} has no BERT encoder.")
    return weights


def _torch_name(name: str) -> str:
    """The name without the module that was wrapped round the encoder for the export."""
    starts = [name.find(part) for part in ("embeddings.", "encoder.") if part in name]
    return name[min(starts) :]


def _read_graph(content: memoryview) -> tuple[dict[str, np.ndarray], list[_Node]]:
    tensors: dict[str, np.ndarray] = {}
    nodes: list[_Node] = []
    for number, graph in _fields(content):
        if number != _MODEL_GRAPH or not isinstance(graph, memoryview):
            continue
        for part, value in _fields(graph):
            if not isinstance(value, memoryview):
                continue
            if part == _GRAPH_INITIALIZER:
                tensor = _read_tensor(value)
                if tensor is not None:
                    tensors[tensor[0]] = tensor[1]
            elif part == _GRAPH_NODE:
                nodes.append(_read_node(value))
    return tensors, nodes


def _read_node(content: memoryview) -> _Node:
    node = _Node()
    for number, value in _fields(content):
        if number == _NODE_INPUT:
            node.inputs.append(_text(value))
        elif number == _NODE_OUTPUT:
            node.outputs.append(_text(value))
        elif number == _NODE_TYPE:
            node.kind = _text(value)
    return node


def _read_tensor(content: memoryview) -> tuple[str, np.ndarray] | None:
    """Name and a copy of the values of a float32 tensor; ``None`` for another type."""
    name, kind, shape, values = "", 0, list[int](), memoryview(b"")
    for number, value in _fields(content):
        if number == _TENSOR_DIMS:
            shape += list(_varints(value)) if isinstance(value, memoryview) else [value]
        elif number == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number in (_TENSOR_RAW, _TENSOR_FLOATS) and isinstance(value, memoryview):
            values = value
    if kind != _FLOAT32:
        return None
    if len(values) != 4 * int(np.prod(shape)):
        raise IndexError(f"{name} has {len(values)} bytes for the shape {shape}")
    return name, np.frombuffer(values, dtype="<f4").reshape(shape).astype(np.float32)


def _text(value: int | memoryview) -> str:
    return str(value, "utf-8") if isinstance(value, memoryview) else ""


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: number, and an integer or the bytes."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(content, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(content, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise IndexError(f"wire type {wire_type}")
        if position + length > len(content):
            raise IndexError("cut off")
        yield number, content[position : position + length]
        position += length


def _varints(content: memoryview) -> Iterator[int]:
    position = 0
    while position < len(content):
        value, position = _varint(content, position)
        yield value


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """The integer at ``position`` (seven bits a byte, lowest first) and where it ends."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
