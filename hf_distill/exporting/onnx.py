"""ONNX files of encoders, in float32 and with 8-bit integers."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility import input_limit
from hf_distill.extras import require
from hf_distill.onnx_model import OnnxModel, exportable_kind
from hf_distill.restoring import preserve_rng_state

MOST_DIFFERENCE = 1e-4
"""Of a logit in float32, relative to the largest one if that is above 1."""
_PROBES = ((1, 7), (3, 33), (2, 128))
_SEED = 0


class Quantization(NamedTuple):
    """Way to store and multiply weights as 8-bit integers."""

    name: str
    per_channel: bool = True
    """One scale per output of a matrix, instead of one per matrix."""
    leaves_out: str | None = None
    """Matrices that stay in float32: ``head``, or ``feed-forward`` (the second of each layer)."""
    static: bool = False
    """Calibrate the scales of activations, instead of finding them for each input."""


DYNAMIC = (
    Quantization("per channel"),
    Quantization("per channel, head in float32", leaves_out="head"),
    Quantization("per channel, second feed-forward matrices in float32", leaves_out="feed-forward"),
)
STATIC = tuple(one._replace(name=f"static, {one.name}", static=True) for one in DYNAMIC)


def export_onnx(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: Path
) -> float:
    """Write a model as ONNX, with any batch size and length, and compare its logits.

    PyTorch's exporter is tried first and that of transformers after it.

    Returns:
        The largest difference of a logit.

    Raises:
        MissingExtraError: a package of the extra ``export`` is not installed.
        ValueError: models of this class cannot be exported.
        RuntimeError: no exporter can, or its model gives other logits.
    """
    exportable_kind(type(model).__name__)
    require("onnx", "export")
    require("onnxscript", "export")
    require("onnxruntime", "export")
    # Two inputs of different lengths, so that no mask is a constant.
    inputs = probe(model, tokenizer, 2, 16)
    failures = []
    for exporter in (_with_torch, _with_transformers):
        try:
            with _quiet(), preserve_rng_state(), torch.no_grad():
                exporter(model.eval(), inputs, file)
            return _largest_difference(model, tokenizer, file)
        except Exception as error:
            failures.append(f"{exporter.__name__.removeprefix('_with_')}: {_first_line(error)}")
            file.unlink(missing_ok=True)
    raise RuntimeError(
        f"The {type(model).__name__} cannot be exported to ONNX; tried the exporters of "
        + "; ".join(failures)
    )


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, rows: int, length: int
) -> dict[str, Tensor]:
    """Return inputs with random tokens or pixels, the same ones each time.

    All rows but the first are shorter, which padding fills; images have the size that the model
    takes.
    """
    generator = torch.Generator().manual_seed(_SEED)
    config: Any = model.config
    accepted = inspect.signature(model.forward).parameters
    if "pixel_values" in accepted:
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (rows, config.num_channels, height, width)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    length = min(length, input_limit(model) or length)
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, max(2, length - 3 * row) :] = 0
    padding = config.pad_token_id
    ids = ids.masked_fill(mask == 0, 0 if padding is None else padding)
    # A pad token in the text would hide it.
    ids = ids.masked_fill((ids == padding) & (mask == 1), (padding or 0) + 1)
    names = ["input_ids", "attention_mask"] if tokenizer is None else tokenizer.model_input_names
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {k: v for k, v in inputs.items() if k in accepted and (k in names or k == "input_ids")}


def quantize(
    source: Path,
    target: Path,
    how: Quantization,
    calibration: Iterable[Mapping[str, Tensor]] = (),
) -> None:
    """Write an ONNX model with 8-bit weights.

    Args:
        source: a float32 model.
        target: the file to write.
        how: which weights, and how.
        calibration: batches of inputs, for a static quantization.
    """
    onnx = require("onnx", "export")
    quantization = require("onnxruntime.quantization", "export")
    options: dict[str, Any] = {
        "per_channel": how.per_channel,
        "weight_type": quantization.QuantType.QInt8,
        "nodes_to_exclude": _excluded(onnx.load(str(source), load_external_data=False), how),
    }
    with _quiet():
        if not how.static:
            quantization.quantize_dynamic(str(source), str(target), **options)
            return
        quantization.quantize_static(
            str(source),
            str(target),
            _CalibrationReader(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            **options,
        )


def _excluded(model: Any, how: Quantization) -> list[str]:
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    matrices: list[tuple[str, tuple[int, ...]]] = []
    for node in model.graph.node:
        weights = [shapes[name] for name in node.input if len(shapes.get(name, ())) == 2]
        if node.op_type in ("MatMul", "Gemm") and weights:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            matrices.append((node.name, weights[0][::-1] if transposed else weights[0]))
    if how.leaves_out == "head":
        return [name for name, _ in matrices[-1:]]
    if how.leaves_out == "feed-forward":
        return [name for name, (inputs, outputs) in matrices[:-1] if inputs > outputs]
    return []


class _CalibrationReader:
    """Batches, as ONNX Runtime asks for them."""

    def __init__(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._rest = iter([{k: v.numpy() for k, v in batch.items()} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rest, None)


def _with_torch(model: PreTrainedModel, inputs: dict[str, Tensor], file: Path) -> None:
    program = torch.onnx.export(
        model,
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes={name: _free_dimensions(name) for name in inputs},
        input_names=list(inputs),
        output_names=_output_names(model, inputs),
        verbose=False,
    )
    assert program is not None
    program.save(str(file), external_data=False)


def _with_transformers(model: PreTrainedModel, inputs: dict[str, Tensor], file: Path) -> None:
    exporters = require("transformers.exporters.exporter_onnx", "export")
    shapes = {name: _free_dimensions(name) for name in inputs}
    exported = exporters.OnnxExporter().export(
        model, inputs, config=exporters.OnnxConfig(dynamic_shapes=shapes)
    )
    # 5.17 returns PyTorch's program, later releases an object that holds the graph.
    graph = getattr(exported, "program", exported)
    require("onnx_ir", "export").save(getattr(graph, "model", graph), str(file))


def _free_dimensions(name: str) -> dict[int, Any]:
    free: Any = torch.export.Dim.DYNAMIC
    return {0: free} if name == "pixel_values" else {0: free, 1: free}


def _output_names(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in model(**inputs).items() if isinstance(value, Tensor)]


def _largest_difference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: Path
) -> float:
    config = PreTrainedConfig.from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    exported = OnnxModel.load(file, config)
    largest = 0.0
    for rows, length in _PROBES:
        inputs = probe(model, tokenizer, rows, length)
        with torch.no_grad():
            expected = model(**inputs)
        found = exported(**inputs)
        visible = inputs.get("attention_mask")
        for name, right in expected.items():
            difference = (found[name] - right).abs()
            if visible is not None and right.shape[:2] == visible.shape:
                difference = difference[visible.bool()]
            scale = max(1.0, float(right.abs().max()))
            largest = max(largest, float(difference.max()) / scale)
    if not largest <= MOST_DIFFERENCE:
        raise RuntimeError(f"its logits differ by {largest:.2g}, more than {MOST_DIFFERENCE:g}")
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporters' warnings, which are about themselves."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
