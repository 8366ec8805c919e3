"""Export of a fine-tuned model, refused where it costs more quality than allowed."""

from __future__ import annotations

import functools
import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill._version import __version__
from hf_distill.compatibility import input_limit
from hf_distill.exporting.int8 import BLOCKS, DYNAMIC, STATIC, quantize
from hf_distill.exporting.onnx import convert_to_openvino, export_onnx, probe, require_packages
from hf_distill.exporting.sources import load_source
from hf_distill.files import is_temporary, temporary_path, weights_hash, write_json
from hf_distill.loading import copy_processor
from hf_distill.onnx_model import (
    EXPORT_REPORT,
    EXPORTED_FILES,
    OPENVINO_FILE,
    ExportedModel,
    exportable_kind,
    weights_of,
)
from hf_distill.reports.comparison import Latency
from hf_distill.reports.measurements import describe_machine, measure_latencies
from hf_distill.reports.terminal import in_digits, in_words
from hf_distill.scoring import score_model
from hf_distill.tasks import TASKS, create_task, task_of_class
from hf_distill.tasks.base import Task
from hf_distill.tasks.options import TaskArguments
from hf_distill.tasks.tables import evenly_spaced

_FLOAT32_FILE, _INT8_FILE = EXPORTED_FILES
FORMATS = ("onnx", "openvino")
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
        metric_titles: names of the task's metrics in tables, by their names in ``quality``.
        attempts: the ways to quantize that were scored, in their order.
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
    metric_titles: dict[str, str]
    attempts: list[Attempt]
    latencies: dict[str, dict[str, Latency]]
    sizes: dict[str, int]
    machine: dict[str, str]

    def speed_up(self) -> float:
        """Return how many times as fast the export is: the geometric mean over the inputs."""
        ratios = [
            math.log(times["original"].median / times["exported"].median)
            for times in self.latencies.values()
        ]
        return math.exp(sum(ratios) / len(ratios))

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of a table: name, original, exported."""
        before, after = (
            in_words(self.quality.get(role, {}), self.metric_titles)
            for role in ("original", "exported")
        )
        pairs = {
            name: (in_digits(value), in_digits(after[name]))
            for name, value in before.items()
            if name in after
        }
        sizes = self.sizes
        pairs["size, MB"] = (f"{sizes['original'] / 1e6:.1f}", f"{sizes['exported'] / 1e6:.1f}")
        for name, times in self.latencies.items():
            medians = [times[role].median for role in ("original", "exported")]
            pairs[f"{name}, ms"] = (f"{medians[0]:.1f}", f"{medians[1]:.1f}")
        return [(name, *pair) for name, pair in pairs.items()]


def export(
    model: str | os.PathLike[str] | nn.Module,
    output_dir: str | os.PathLike[str],
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    format: str = "onnx",
    int8: bool = False,
    task: Task | str | None = None,
    data: Dataset | str | os.PathLike[str] | None = None,
    calibration_data: Dataset | str | os.PathLike[str] | None = None,
    tolerance: float = 1.0,
    batch_size: int = 16,
) -> ExportReport:
    """Write a fine-tuned encoder for serving, score and time it next to the original.

    The folder gets ``onnx/model.onnx`` (or ``onnx/model_int8.onnx``, or
    ``openvino/openvino_model.xml`` with its ``.bin``), configuration, tokenizer and
    ``export.json``, and is used like a model's folder by ``QuestionAnswerer``, ``hf-distill
    evaluate`` and ``hf-distill compare``. It takes any batch size and length.

    Args:
        model: a model with a head for a task, with its PEFT adapters merged if it has any, or a
            ``SentenceTransformer``, whose export gives ``sentence_embedding``; or its folder or
            Hub id.
        output_dir: a new or empty folder.
        processing_class: the model's tokenizer; by default that of its folder or Hub id. Image
            models need none.
        format: ``onnx``, or ``openvino``, which is converted from it.
        int8: store weights as 8-bit integers. The settings are tried in turn and scored, up to one
            that loses nothing; the one that loses least is written. A setting that is only
            smaller, and not faster, is tried if all others lose more than ``tolerance``.
        task: the task with its options, or its name; by default the model's.
        data: labelled data, needed for ``int8``: a file, or what ``task.load_data`` returns.
        calibration_data: training data, with or without labels, in the same forms. With it int8
            settings whose scales of activations are calibrated on 64 of its rows are tried too.
        tolerance: how much an int8 model may lose of the task's first metric, in its unit (points).
        batch_size: rows that are scored at a time.

    Returns:
        What was written and measured. Latencies are medians over ``batch x length`` with as many
        threads as PyTorch uses.

    Raises:
        MissingExtraError: a package of the extra ``export``, or ``openvino``, is not installed.
        ValueError: the model cannot be exported, an argument is missing, or no int8 model is good
            enough.
        RuntimeError: no exporter can export the model with the same logits.
        FileExistsError: the folder is not empty.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} must be one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ValueError(f"int8=True is for format='onnx', not {format!r}; leave one of them out.")
    if int8 and data is None:
        raise ValueError("int8=True needs data: what the model loses must be measured.")
    if calibration_data is not None and not int8:
        raise ValueError("calibration_data is for int8=True; set it, or leave the data out.")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance} must be at least 0.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    folder = Path(output_dir).expanduser().resolve()
    is_there = folder.exists()
    if is_there and not (folder.is_dir() and all(map(is_temporary, folder.iterdir()))):
        raise FileExistsError(
            f"output_dir={output_dir} is not an empty folder; choose another, or a new one."
        )
    require_packages(format)
    original, tokenizer = load_source(model, processing_class)
    exportable_kind(type(original).__name__)  # before its task is asked for
    chosen = _choose_task(original, task, has_data=data is not None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path((folder if is_there else folder.parent) / "export") as made:
        file = made / _FLOAT32_FILE
        file.parent.mkdir(parents=True)
        judge = None
        if chosen is not None and data is not None:
            if tokenizer is None:
                raise ValueError("data needs processing_class, the model's tokenizer.")
            sys.stderr.write("Scoring the original …\n")
            judge = _Judge(chosen, tokenizer, original, _read(chosen, data), batch_size)
        sys.stderr.write("Exporting …\n")
        exported, difference = export_onnx(original, tokenizer, file)
        if format == "openvino":
            onnx_file, file = file, made / OPENVINO_FILE
            file.parent.mkdir()
            exported, difference = convert_to_openvino(
                original, tokenizer, exported, onnx_file, file
            )
            shutil.rmtree(onnx_file.parent)
        exported.config.save_pretrained(made)
        if not isinstance(model, nn.Module):
            copy_processor(os.fspath(model), made)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
        attempts: list[Attempt] = []
        quality: dict[str, dict[str, float]] = {}
        settings = metric = None
        if judge is not None:
            if int8:
                batches = []
                if calibration_data is not None:
                    rows = _read(judge.task, calibration_data, labelled=False)
                    batches = _calibration_batches(judge.task, judge.tokenizer, original, rows)
                exported, best, attempts = _quantize(exported, file, batches, judge, tolerance)
                file, settings = made / _INT8_FILE, best.settings
            else:
                best = judge.score(exported, "float32")
            quality = {"original": judge.before, "exported": best.quality}
            metric = judge.metric
        sys.stderr.write("Measuring speed …\n")
        models = {"original": original, "exported": exported}
        report = ExportReport(
            file=file.relative_to(made).as_posix(),
            weights="int8" if int8 else "float32",
            settings=settings,
            largest_difference=difference,
            quality=quality,
            metric=metric,
            metric_titles={} if judge is None else judge.titles,
            attempts=attempts,
            latencies=latencies_by_shape(models, tokenizer, chosen),
            sizes={
                "original": sum(p.numel() * p.element_size() for p in original.parameters()),
                "exported": weights_of(file).stat().st_size,
            },
            machine=describe_machine(torch.device("cpu")),
        )
        task_name = None if chosen is None else chosen.name
        source = None if isinstance(model, nn.Module) else Path(model)
        content = {
            "hf_distill_version": __version__,
            "task": task_name,
            # By these `push` knows the exports of a student.
            "source_weights": weights_hash(source) if source and source.is_dir() else None,
            **asdict(report),
            "speed_up": report.speed_up(),
        }
        report_file = write_json(made / EXPORT_REPORT, content)
        if is_there:  # it may be the working directory, or the root of a volume
            for one in sorted(made.iterdir(), key=report_file.__eq__):  # the report at the end
                one.replace(folder / one.name)
        else:
            made.replace(folder)
    return report


def _choose_task(model: PreTrainedModel, task: Task | str | None, has_data: bool) -> Task | None:
    name = task_of_class(type(model).__name__, model.config) if task is None else task
    if name is None and has_data:
        raise ValueError(
            f"data cannot be scored for a {type(model).__name__}: leave out data and int8, whose "
            f"loss is measured on it. The tasks with a score are: {', '.join(TASKS)}."
        )
    own = task_of_class(type(model).__name__, model.config)
    asked = name if name is None or isinstance(name, str) else name.name
    if own is not None and asked != own:
        raise ValueError(f"task={asked!r}: the {type(model).__name__} is for {own}; leave it out.")
    return create_task(name, TaskArguments()) if isinstance(name, str) else name


def _read(task: Task, data: Dataset | str | os.PathLike[str], *, labelled: bool = True) -> Dataset:
    return data if isinstance(data, Dataset) else task.load_data(os.fspath(data), labelled=labelled)


class _Judge:
    """Scores exported models next to the original, all on the same data."""

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        original: PreTrainedModel,
        examples: Dataset,
        batch_size: int,
    ) -> None:
        self.task, self.tokenizer = task, tokenizer
        self._score = functools.partial(
            score_model,
            task,
            tokenizer=tokenizer,
            examples=examples,
            batch_size=batch_size,
            use_cpu=True,
        )
        scored = self._score(original)
        self.before = scored.metrics
        measures = scored.scorer.measures
        self.titles = dict(measures.quality)
        self.metric = next(iter(self.titles))
        self._sign = -1 if self.metric in measures.lower_is_better else 1

    def score(self, exported: ExportedModel, settings: str) -> Attempt:
        quality = self._score(cast(PreTrainedModel, exported)).metrics
        loss = self._sign * (self.before[self.metric] - quality[self.metric])
        return Attempt(settings, quality, loss)


def _quantize(
    exported: ExportedModel,
    file: Path,
    calibration: Sequence[Mapping[str, Tensor]],
    judge: _Judge,
    tolerance: float,
) -> tuple[ExportedModel, Attempt, list[Attempt]]:
    """Replace ``file`` by the 8-bit model that loses least, the first of several.

    Blocks, which are not faster than float32, are tried if everything else loses too much.

    Raises:
        ValueError: all lose more than ``tolerance``.
    """
    candidate = file.with_name("candidate.onnx")
    attempts: list[Attempt] = []
    least = math.inf
    for how in (*DYNAMIC, *(STATIC if calibration else ()), BLOCKS):
        if least <= (tolerance if how is BLOCKS else 0):
            break
        sys.stderr.write(f"Quantizing: {how.name} …\n")
        quantize(file, candidate, how, calibration)
        quantized = ExportedModel.load(candidate, exported.config)
        attempts.append(judge.score(quantized, how.name))
        if attempts[-1].loss < least:
            model, best, least = quantized, attempts[-1], attempts[-1].loss
            candidate.replace(file.with_name(Path(_INT8_FILE).name))
    if not least <= tolerance:
        tried = "; ".join(f"{one.settings}: {one.loss:.2f}" for one in attempts)
        raise ValueError(
            f"Every int8 model loses more than tolerance={tolerance:g} points ({tried}). Raise "
            "tolerance, give calibration_data, or export without int8."
        )
    candidate.unlink(missing_ok=True)
    file.unlink()
    return model, best, attempts


def _calibration_batches(
    task: Task, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, examples: Dataset
) -> list[dict[str, Tensor]]:
    """Return the inputs of a few rows from all over the data, one row at a time."""
    few = evenly_spaced(examples, _CALIBRATION_ROWS)
    features, _ = task.features(few, tokenizer, model, training=False, labelled=False)
    inputs = features.select_columns(list(probe(model, tokenizer, 1, 2))).with_format("torch")
    return [{name: value[None] for name, value in row.items()} for row in inputs]


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
