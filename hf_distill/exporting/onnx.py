"""ONNX files of encoders, compared with the model they are made of, and OpenVINO's of them."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility import input_limit
from hf_distill.exporting.sources import SentenceEncoder
from hf_distill.extras import require
from hf_distill.onnx_model import ExportedModel, exportable_kind
from hf_distill.restoring import preserve_rng_state, temporarily_set

Exportable = PreTrainedModel | SentenceEncoder

MOST_DIFFERENCE = 1e-4
"""Of a logit in float32, relative to the largest one if that is above 1."""
_PROBES = ((1, 7), (3, 33), (2, 128))
_SEED = 0
_ENDINGS = ("logits", "embedding")
"""Of the names of outputs that are kept, which are a model's first: states and caches follow."""


def export_onnx(
    model: Exportable, tokenizer: PreTrainedTokenizerBase | None, file: Path
) -> tuple[ExportedModel, float]:
    """Write a model as ONNX, with any batch size and length, and compare its logits.

    PyTorch's exporter is tried first and that of transformers after it.

    Returns:
        The exported model, and the largest difference of a logit.

    Raises:
        MissingExtraError: a package of the extra ``export`` is not installed.
        ValueError: models of this class cannot be exported.
        RuntimeError: no exporter can, or its model gives other logits.
    """
    kind = exportable_kind(type(model).__name__)
    require_packages()
    config = type(model.config).from_dict(model.config.to_dict())
    encoder = model.encoder if isinstance(model, SentenceEncoder) else model
    config.architectures = [type(encoder).__name__]
    # Two inputs of different lengths, so that no mask is a constant.
    inputs = probe(model, tokenizer, 2, 16)
    failures = []
    for exporter in (_with_torch, _with_transformers):
        try:
            with quiet(), preserve_rng_state(), torch.no_grad(), _without_cache(model):
                _save(exporter(model.eval(), inputs), file)
            exported = ExportedModel.load(file, config, kind)
            return exported, largest_difference(model, tokenizer, exported)
        except Exception as error:
            failures.append(f"{exporter.__name__.removeprefix('_with_')}: {_cause(error)}")
            file.unlink(missing_ok=True)
    raise RuntimeError(
        f"The {type(model).__name__} cannot be exported to ONNX; tried the exporters of "
        + "; ".join(failures)
    )


def convert_to_openvino(
    model: Exportable,
    tokenizer: PreTrainedTokenizerBase | None,
    exported: ExportedModel,
    source: Path,
    target: Path,
) -> tuple[ExportedModel, float]:
    """Write an ONNX file for OpenVINO, in float32, and compare its logits with the original's.

    Returns:
        The converted model, and the largest difference of a logit.
    """
    openvino = require("openvino", "openvino")
    # `convert_model` reports each use to its makers.
    converted = openvino.Core().read_model(str(source))
    openvino.save_model(converted, str(target), compress_to_fp16=False)
    made = ExportedModel.load(target, exported.config, exported.kind)
    return made, largest_difference(model, tokenizer, made)


def require_packages(format: str = "onnx") -> None:
    """Import what an export needs.

    Raises:
        MissingExtraError: a package of the extra ``export`` or ``openvino`` is not installed.
    """
    if format == "openvino":
        require("openvino", "openvino")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "export")


def probe(
    model: Exportable, tokenizer: PreTrainedTokenizerBase | None, rows: int, length: int
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
    if "input_values" in accepted:
        samples = length * math.prod(config.conv_stride)
        return {"input_values": torch.randn(rows, samples, generator=generator)}
    length = min(length, input_limit(model) or length)
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, max(2, length - 3 * row) :] = 0
    padding = config.pad_token_id
    end = config.eos_token_id if config.is_encoder_decoder else None
    # A pad token in the text would hide it, and a text has one end.
    special = {padding, end} - {None}
    other = next(token for token in range(3) if token not in special)
    for token in special:
        ids = ids.masked_fill(ids == token, other)
    if end is not None:
        ids[torch.arange(rows), mask.sum(1) - 1] = end
    ids = ids.masked_fill(mask == 0, 0 if padding is None else padding)
    names = ["input_ids", "attention_mask"] if tokenizer is None else tokenizer.model_input_names
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    inputs = {k: v for k, v in inputs.items() if k in names or k == "input_ids"}
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {k: v.repeat_interleave(2, 0).view(rows, 2, length) for k, v in inputs.items()}
        inputs["input_ids"][:, 1] = inputs["input_ids"][:, 0].flip(0)
    return {name: value for name, value in inputs.items() if name in accepted}


def _with_torch(model: Exportable, inputs: dict[str, Tensor]) -> Any:
    program = torch.onnx.export(
        model,
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes=_free_dimensions(inputs),
        input_names=list(inputs),
        output_names=_output_names(model, inputs),
        verbose=False,
    )
    assert program is not None
    return program.model


def _with_transformers(model: Exportable, inputs: dict[str, Tensor]) -> Any:
    exporters = require("transformers.exporters.exporter_onnx", "export")
    exported = exporters.OnnxExporter().export(
        model, inputs, config=exporters.OnnxConfig(dynamic_shapes=_free_dimensions(inputs))
    )
    # 5.17 returns PyTorch's program, later releases an object that holds the graph.
    graph = getattr(exported, "program", exported)
    return getattr(graph, "model", graph)


def _free_dimensions(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    free: Any = torch.export.Dim.DYNAMIC
    return {
        name: dict.fromkeys(range(1 if name == "pixel_values" else value.ndim), free)
        for name, value in inputs.items()
    }


def _output_names(model: Exportable, inputs: Mapping[str, Tensor]) -> list[str]:
    return [name for name in model(**inputs) if name.endswith(_ENDINGS)]


def _save(graph: Any, file: Path) -> None:
    ir = require("onnx_ir", "export")
    passes = require("onnx_ir.passes.common", "export")
    outputs = graph.graph.outputs
    outputs[:] = [one for one in outputs if one.name.endswith(_ENDINGS)]
    passes.RemoveUnusedNodesPass()(graph)
    ir.save(graph, str(file))


@contextlib.contextmanager
def _without_cache(model: Exportable) -> Iterator[None]:
    """Leave out the caches of decoders, which exporters do not know."""
    configs = {id(one.config): one.config for one in model.modules() if hasattr(one, "config")}
    with contextlib.ExitStack() as stack:
        for config in configs.values():
            stack.enter_context(temporarily_set(config, use_cache=False))
        yield


def largest_difference(
    model: Exportable, tokenizer: PreTrainedTokenizerBase | None, exported: ExportedModel
) -> float:
    """Return the largest difference of a logit from the original's, relative if that is above 1.

    Raises:
        RuntimeError: it is more than ``MOST_DIFFERENCE``, or NaN.
    """
    largest = torch.zeros(())
    for rows, length in _PROBES:
        inputs = probe(model, tokenizer, rows, length)
        with torch.no_grad():
            expected = model(**inputs)
        found = exported(**inputs)
        visible = inputs.get("attention_mask")
        if not (names := expected.keys() & found.keys()):
            raise RuntimeError(f"its outputs are {', '.join(found)}, and not {', '.join(expected)}")
        for name in names:
            right = expected[name]
            difference = (found[name] - right).abs()
            is_per_token = right.dim() > 2 or name in ("start_logits", "end_logits")
            if visible is not None and is_per_token and right.shape[:2] == visible.shape:
                difference = difference[visible.bool()]
            scale = max(1.0, float(right.abs().max()))
            largest = torch.maximum(largest, difference.max() / scale)  # NaN if one of them is
    if largest.isnan():
        raise RuntimeError("its logits, or those of the original, are NaN")
    if largest > MOST_DIFFERENCE:
        raise RuntimeError(f"its logits differ by {largest:.2g}, more than {MOST_DIFFERENCE:g}")
    return float(largest)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporters' warnings, which are about themselves."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: Exception) -> str:
    """Return what an exporter's long report is about, which is at its end."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines()
    return ": ".join([type(cause).__name__, *lines[:1]])
