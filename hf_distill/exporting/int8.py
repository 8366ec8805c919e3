"""ONNX models with 8-bit weights: the ways to make them, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from hf_distill.exporting.onnx import quiet
from hf_distill.extras import require


class Quantization(NamedTuple):
    """Way to store weights as 8-bit integers, and to multiply by them."""

    name: str
    per_channel: bool = True
    """One scale per output of a matrix, instead of one per matrix."""
    in_float32: str | None = None
    """Matrices that stay: ``head``, or ``feed-forward`` (the second of each layer)."""
    static: bool = False
    """Calibrate the scales of activations, instead of finding them for each input."""
    blocks: bool = False
    """One scale per 32 weights and per 32 activations: close to float32, and no faster."""


DYNAMIC = (
    Quantization("per channel"),
    Quantization("per channel, second feed-forward matrices in float32", in_float32="feed-forward"),
    Quantization("per channel, head in float32", in_float32="head"),
)
STATIC = tuple(one._replace(name=f"static, {one.name}", static=True) for one in DYNAMIC)
BLOCKS = Quantization("blocks of 32", blocks=True)


def quantize(
    source: Path,
    target: Path,
    how: Quantization,
    calibration: Iterable[Mapping[str, Tensor]] = (),
) -> None:
    """Write an ONNX model with 8-bit weights; its embeddings have one scale per token.

    Args:
        source: a float32 model.
        target: the file to write.
        how: which weights, and how.
        calibration: batches of inputs, for a static quantization.
    """
    onnx = require("onnx", "export")
    quantization = require("onnxruntime.quantization", "export")
    model = onnx.load(str(source))
    _quantize_embeddings(onnx, model)
    options: dict[str, Any] = {
        "per_channel": how.per_channel,
        # Unsigned like activations: mixed products saturate on x86 processors without VNNI.
        "weight_type": quantization.QuantType.QUInt8,
        "nodes_to_exclude": _excluded(model, how),
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "extra_options": {"MatMulConstBOnly": True},
    }
    with quiet():
        if how.blocks:
            module = require("onnxruntime.quantization.matmul_nbits_quantizer", "export")
            quantizer = module.MatMulNBitsQuantizer(
                model, bits=8, block_size=32, is_symmetric=True, accuracy_level=4
            )
            quantizer.process()
            onnx.save(quantizer.model.model, str(target))
        elif how.static:
            quantization.quantize_static(
                model,
                str(target),
                _CalibrationReader(calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                **options,
            )
        else:
            quantization.quantize_dynamic(model, str(target), **options)


def _quantize_embeddings(onnx: Any, model: Any) -> None:
    """Store tables that rows are picked from as integers, with one scale per row."""
    node_of, to_array = onnx.helper.make_node, onnx.numpy_helper.to_array
    float32 = onnx.TensorProto.FLOAT
    tables = {
        one.name: one
        for one in model.graph.initializer
        if len(one.dims) == 2 and one.data_type == float32
    }
    nodes, quantized = [], set()
    for node in model.graph.node:
        table = node.input[0] if node.op_type == "Gather" else None
        if table not in tables or any(a.name == "axis" and a.i for a in node.attribute):
            nodes.append(node)
            continue
        if table not in quantized:
            values = to_array(tables[table])
            scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
            scales[scales == 0] = 1
            for name, array in (
                (f"{table}_quantized", np.rint(values / scales).astype(np.int8)),
                (f"{table}_scale", scales),
            ):
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            quantized.add(table)
        output, rows = node.output[0], node.input[1]
        nodes += [
            node_of("Gather", [f"{table}_quantized", rows], [f"{output}_quantized"]),
            node_of("Gather", [f"{table}_scale", rows], [f"{output}_scale"]),
            node_of("Cast", [f"{output}_quantized"], [f"{output}_cast"], to=float32),
            node_of("Mul", [f"{output}_cast", f"{output}_scale"], [output]),
        ]
    used = {name for node in nodes for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    for field, content in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        del field[:]
        field.extend(content)


def _excluded(model: Any, how: Quantization) -> list[str]:
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    matrices: list[tuple[str, tuple[int, ...]]] = []
    for node in model.graph.node:
        weights = [shapes[name] for name in node.input if len(shapes.get(name, ())) == 2]
        if node.op_type in ("MatMul", "Gemm") and weights:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            matrices.append((node.name, weights[0][::-1] if transposed else weights[0]))
    if how.in_float32 == "head":
        return [name for name, _ in matrices[-1:]]
    if how.in_float32 == "feed-forward":
        return [name for name, (inputs, outputs) in matrices[:-1] if inputs > outputs]
    return []


class _CalibrationReader:
    """Batches, as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._rest = iter([{k: v.numpy() for k, v in batch.items()} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rest, None)
