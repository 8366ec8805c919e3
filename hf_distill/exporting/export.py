"""Export of a fine-tuned model, refused where it costs more quality than allowed."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill._version import __version__
from hf_distill.compatibility import input_limit
from hf_distill.exporting.onnx import DYNAMIC, STATIC, Quantization, export_onnx, probe, quantize
from hf_distill.files import write_json
from hf_distill.heads import find_head, head_of_class
from hf_distill.loading import load_fine_tuned, load_tokenizer, read_config
from hf_distill.onnx_model import OnnxModel
from hf_distill.reports.comparison import Latency
from hf_distill.reports.measurements import describe_machine, measure_latencies
from hf_distill.scoring import score_model
from hf_distill.tasks import TASKS, create_task
from hf_distill.tasks.base import Task
from hf_distill.tasks.options import TaskArguments

REPORT_FILE = "export.json"
_REPEATS = 9
_BATCHES = (1, 8)
_SHORT, _LONGEST = 128, 512
_CALIBRATION_ROWS = 64


@dataclass(frozen=True)
class Attempt:
    """One way to quantize that was scored.

    Attributes:
        settings: which weights are 8-bit integers, and how.
        quality: the task's metrics.
        loss: how much worse the first metric is than the original's, in its unit.
    """

    settings: str
    quality: dict[str, float]
    loss: float


@dataclass(frozen=True)
class ExportReport:
    """Exported model: its file, its quality and its speed next to the original.

    Attributes:
        file: the exported model, relative to the folder.
        weights: ``float32`` or ``int8``.
        settings: how the weights were quantized; ``None`` for float32.
        largest_difference: of a logit of the float32 export, relative to the largest logit if that
            is above 1.
        quality: metrics of ``original`` and ``exported``; empty if no data was given.
        metric: name of the metric that decides.
        attempts: the ways to quantize that were scored, the accepted one last.
        latencies: milliseconds of ``original`` and ``exported`` by ``batch x length``.
        sizes: bytes of the weights of ``original`` and ``exported``.
        machine: what the latencies depend on.
    """

    file: str
    weights: str
    settings: str | None
    largest_difference: float
    quality: dict[str, dict[str, float]]
    metric: str | None
    attempts: list[Attempt]
    latencies: dict[str, dict[str, Latency]]
    sizes: dict[str, int]
    machine: dict[str, str]

    def speed_up(self) -> float:
        """Return how many times faster the export is: the geometric mean over the inputs."""
        ratios = [
            math.log(times["original"].median / times["exported"].median)
            for times in self.latencies.values()
        ]
        return math.exp(sum(ratios) / len(ratios))

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table: name, original, exported."""
        quality = self.quality or {"original": {}, "exported": {}}
        pairs = {
            name.replace("_", " "): (f"{before:.2f}", f"{quality['exported'][name]:.2f}")
            for name, before in quality["original"].items()
            if name != "loss" and name in quality["exported"]
        }
        sizes = self.sizes
        pairs["size, MB"] = (f"{sizes['original'] / 1e6:.1f}", f"{sizes['exported'] / 1e6:.1f}")
        for name, times in self.latencies.items():
            before, after = times["original"].median, times["exported"].median
            pairs[f"{name}, ms"] = (f"{before:.1f}", f"{after:.1f}")
        return [(name, *pair) for name, pair in pairs.items()]


def export(
    model: str | os.PathLike[str] | PreTrainedModel,
    output_dir: str | os.PathLike[str],
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    int8: bool = False,
    calibration: str = "dynamic",
    task: Task | str | None = None,
    data: Dataset | str | os.PathLike[str] | None = None,
    tolerance: float = 1.0,
    batch_size: int = 16,
) -> ExportReport:
    """Write a fine-tuned encoder as ONNX, score and time it next to the original.

    The folder gets ``onnx/model.onnx`` (or ``onnx/model_int8.onnx``), configuration, tokenizer and
    ``export.json``, and is used like a model's folder by ``QuestionAnswerer``, ``hf-distill
    evaluate`` and ``hf-distill compare``. It takes any batch size and length.

    Args:
        model: a model with a head for a task, its folder or its Hub id.
        output_dir: a new or empty folder.
        processing_class: the model's tokenizer; by default that of its folder or Hub id. Image
            models need none.
        int8: store weights as 8-bit integers, one scale per output of a matrix. The settings are
            tried in turn (all matrices; the head, then the second feed-forward matrices in
            float32) until one loses at most ``tolerance``.
        calibration: ``"dynamic"`` finds the scales of activations for each input, ``"static"`` on
            64 rows of the data.
        task: the task with its options, or its name; by default the model's.
        data: labelled data, needed for ``int8``: a file, or what ``task.load_data`` returns.
        tolerance: how much an int8 model may lose of the task's first metric, in its unit (points).
        batch_size: rows that are scored at a time.

    Returns:
        What was written and measured. Latencies are medians over ``batch x length`` with as many
        threads as PyTorch uses.

    Raises:
        MissingExtraError: a package of the extra ``export`` is not installed.
        ValueError: the model cannot be exported, an argument is missing, or no int8 model is good
            enough.
        RuntimeError: no exporter can export the model with the same logits.
        FileExistsError: the folder is not empty.
    """
    if int8 and data is None:
        raise ValueError("int8=True needs data: what the model loses must be measured.")
    if calibration not in ("dynamic", "static"):
        raise ValueError(f"calibration={calibration!r} must be 'dynamic' or 'static'.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance} must be at least 0.")
    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"output_dir={folder} is not empty; choose another folder.")
    original, tokenizer = _load(model, processing_class)
    chosen, examples = _task_and_data(original, task, data)
    if examples is not None and tokenizer is None:
        raise ValueError("data needs processing_class, the model's tokenizer.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        made = Path(work) / "export"
        (made / "onnx").mkdir(parents=True)
        file = made / "onnx" / "model.onnx"
        sys.stderr.write("Exporting …\n")
        difference = export_onnx(original, tokenizer, file)
        config = type(original.config).from_dict(original.config.to_dict())
        config.architectures = [type(original).__name__]
        config.save_pretrained(made)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
        quality: dict[str, dict[str, float]] = {}
        attempts: list[Attempt] = []
        metric = None
        if chosen is not None and tokenizer is not None and examples is not None:
            score = functools.partial(
                score_model, chosen, tokenizer=tokenizer, examples=examples, batch_size=batch_size
            )
            sys.stderr.write("Scoring the original …\n")
            scored = score(original, use_cpu=True)
            quality["original"] = before = scored.metrics
            measures = scored.scorer.measures
            metric = decides = next(iter(measures.quality))
            sign = -1 if metric in measures.lower_is_better else 1
            if int8:
                full, file = file, file.with_name("model_int8.onnx")
                attempts = _attempts(
                    full,
                    file,
                    STATIC if calibration == "static" else DYNAMIC,
                    lambda: _calibration_batches(chosen, tokenizer, original, examples),
                    lambda: (
                        score(
                            cast(PreTrainedModel, OnnxModel.load(file, config)), use_cpu=True
                        ).metrics
                    ),
                    lambda after: sign * (before[decides] - after[decides]),
                    tolerance,
                )
                full.unlink()
                quality["exported"] = attempts[-1].quality
            else:
                quality["exported"] = score(
                    cast(PreTrainedModel, OnnxModel.load(file, config)), use_cpu=True
                ).metrics
        sys.stderr.write("Measuring speed …\n")
        models = {"original": original, "exported": OnnxModel.load(file, config)}
        report = ExportReport(
            file=file.relative_to(made).as_posix(),
            weights="int8" if int8 else "float32",
            settings=attempts[-1].settings if attempts else None,
            largest_difference=difference,
            quality=quality,
            metric=metric,
            attempts=attempts,
            latencies=latencies_by_shape(models, tokenizer, chosen),
            sizes={
                "original": sum(p.numel() * p.element_size() for p in original.parameters()),
                "exported": file.stat().st_size,
            },
            machine=describe_machine(torch.device("cpu")),
        )
        task_name = None if chosen is None else chosen.name
        content = {"hf_distill_version": __version__, "task": task_name, **asdict(report)}
        write_json(made / REPORT_FILE, content)
        if folder.exists():
            folder.rmdir()
        shutil.move(made, folder)
    return report


def _load(
    model: str | os.PathLike[str] | PreTrainedModel,
    processing_class: PreTrainedTokenizerBase | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if isinstance(model, PreTrainedModel):
        # A copy: the caller's model stays where it is, and as exact as it is.
        loaded = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)  # type: ignore[call-arg]
        return loaded.eval(), processing_class
    source = os.fspath(model)
    config = read_config(source, "model")
    head = head_of_class((config.architectures or [type(config).__name__])[0], config)
    if head is None:
        raise ValueError(f"model={source!r} has no head of a supported task.")
    loaded = load_fine_tuned(head.auto_model, source, task=head.task, name=f"model={source!r}")
    if isinstance(loaded, OnnxModel):
        raise ValueError(f"model={source!r} is exported already; name the folder it was made of.")
    if processing_class is None and head.task in TASKS:
        processing_class = load_tokenizer(source)
    return loaded, processing_class


def _task_and_data(
    model: PreTrainedModel, task: Task | str | None, data: Dataset | str | os.PathLike[str] | None
) -> tuple[Task | None, Dataset | None]:
    if task is None:
        head = find_head(model)
        name = None if head is None else head.task
        if name not in TASKS and data is not None:
            raise ValueError(
                f"data cannot be scored for a {type(model).__name__}; the tasks are: "
                f"{', '.join(TASKS)}."
            )
        task = name if name in TASKS else None
    if isinstance(task, str):
        task = create_task(task, TaskArguments())
    if data is None or task is None or isinstance(data, Dataset):
        return task, data if isinstance(data, Dataset) else None
    return task, task.load_data(os.fspath(data))


def _attempts(
    source: Path,
    target: Path,
    ways: Sequence[Quantization],
    calibration: Callable[[], Iterable[Mapping[str, Tensor]]],
    score: Callable[[], dict[str, float]],
    lost: Callable[[Mapping[str, float]], float],
    tolerance: float,
) -> list[Attempt]:
    """Quantize in one way after the other until one loses little enough.

    Raises:
        ValueError: none does.
    """
    attempts: list[Attempt] = []
    for how in ways:
        sys.stderr.write(f"Quantizing: {how.name} …\n")
        quantize(source, target, how, calibration() if how.static else ())
        quality = score()
        attempts.append(Attempt(how.name, quality, lost(quality)))
        if attempts[-1].loss <= tolerance:
            return attempts
    tried = "; ".join(f"{one.settings}: {one.loss:.2f}" for one in attempts)
    raise ValueError(
        f"Every int8 model loses more than tolerance={tolerance:g} points ({tried}). Raise "
        "tolerance, try the other calibration, or export without int8."
    )


def _calibration_batches(
    task: Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, examples: Dataset
) -> Iterator[dict[str, Tensor]]:
    """Return the inputs of a few rows from all over the data, one row at a time."""
    rows = min(_CALIBRATION_ROWS, len(examples))
    few = examples.select([i * len(examples) // rows for i in range(rows)])
    features, _ = task.features(few, tokenizer, model, training=False, labelled=False)
    names = probe(model, tokenizer, 1, 2)
    for row in features.select_columns(list(names)).with_format("torch"):
        yield {name: value[None] for name, value in row.items()}


def latencies_by_shape(
    models: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, task: Task | None
) -> dict[str, dict[str, Latency]]:
    """Time models in turns, each batch size with short and with full inputs.

    Args:
        models: by role, ``original`` among them.
        tokenizer: the models' tokenizer; images need none.
        task: knows the full length; by default the most that the model takes, up to 512.
    """
    original = models["original"]
    full = min(_LONGEST, input_limit(original) or _LONGEST)
    if task is not None and tokenizer is not None:
        full = task.length(tokenizer, original)
    measured = {}

    def runner(model: Any) -> Callable[[Sequence[Mapping[str, Any]]], object]:
        @torch.inference_mode()
        def run(batches: Sequence[Mapping[str, Any]]) -> None:
            for batch in batches:
                model(**batch)

        return run

    for batch, length in itertools.product(_BATCHES, sorted({min(_SHORT, full), full})):
        inputs = probe(original, tokenizer, batch, length)
        is_image = "pixel_values" in inputs
        name = f"batch {batch}" if is_image else f"batch {batch} x {length} tokens"
        if name not in measured:
            runners = {role: runner(model) for role, model in models.items()}
            measured[name] = measure_latencies(runners, [inputs] * _REPEATS)
    return measured
