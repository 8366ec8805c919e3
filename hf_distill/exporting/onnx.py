"""ONNX files of encoders, compared with the model they are made of."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.compatibility import input_limit
from hf_distill.extras import require
from hf_distill.onnx_model import OnnxModel, exportable_kind
from hf_distill.restoring import preserve_rng_state

MOST_DIFFERENCE = 1e-4
"""Of a logit in float32, relative to the largest one if that is above 1."""
_PROBES = ((1, 7), (3, 33), (2, 128))
_SEED = 0


def export_onnx(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: Path
) -> tuple[OnnxModel, float]:
    """Write a model as ONNX, with any batch size and length, and compare its logits.

    PyTorch's exporter is tried first and that of transformers after it.

    Returns:
        The exported model, and the largest difference of a logit.

    Raises:
        MissingExtraError: a package of the extra ``export`` is not installed.
        ValueError: models of this class cannot be exported.
        RuntimeError: no exporter can, or its model gives other logits.
    """
    exportable_kind(type(model).__name__)
    require_packages()
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    # Two inputs of different lengths, so that no mask is a constant.
    inputs = probe(model, tokenizer, 2, 16)
    failures = []
    for exporter in (_with_torch, _with_transformers):
        try:
            with quiet(), preserve_rng_state(), torch.no_grad():
                exporter(model.eval(), inputs, file)
            exported = OnnxModel.load(file, config)
            return exported, _largest_difference(model, tokenizer, exported)
        except Exception as error:
            failures.append(f"{exporter.__name__.removeprefix('_with_')}: {_first_line(error)}")
            file.unlink(missing_ok=True)
    raise RuntimeError(
        f"The {type(model).__name__} cannot be exported to ONNX; tried the exporters of "
        + "; ".join(failures)
    )


def require_packages() -> None:
    """Import what an export needs.

    Raises:
        MissingExtraError: a package of the extra ``export`` is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "export")


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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, exported: OnnxModel
) -> float:
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


def _first_line(error: Exception) -> str:
    lines: Sequence[str] = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}"
