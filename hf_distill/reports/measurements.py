"""Sizes of saved models, their speed side by side, and the machine."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from hf_distill.onnx_model import exported_file, weights_of
from hf_distill.reports.comparison import Latency

Predictor = Callable[[Sequence[Mapping[str, Any]]], object]

WARM_UP = 2
BLOCK = 8
ROUNDS = 3
_NUMBER_FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(source: str) -> list[Path]:
    """Return the ``.safetensors`` files of a folder, or of a Hub model in the local cache.

    Of a folder with an exported model its ONNX file.
    """
    folder = Path(source)
    if folder.is_dir():
        exported = exported_file(folder)
        return [weights_of(exported)] if exported else sorted(folder.glob("*.safetensors"))
    index = try_to_load_from_cache(source, "model.safetensors.index.json")
    names = {"model.safetensors"}
    if isinstance(index, str):
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    found = (try_to_load_from_cache(source, name) for name in sorted(names))
    return [Path(path) for path in found if isinstance(path, str)]


def stored_as(files: Sequence[Path]) -> str | None:
    """Return the number format of most weights; ``None`` without files."""
    counts: Counter[str] = Counter()
    if [path.suffix for path in files] in ([".onnx"], [".bin"]):
        return "int8" if files[0].stem.endswith("int8") else "float32"
    for path in files:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_slice(name)
                counts[tensor.get_dtype()] += math.prod(tensor.get_shape())
    most = counts.most_common(1)
    return _NUMBER_FORMATS.get(most[0][0], most[0][0]) if most else None


def measure_latencies(
    predictors: Mapping[str, Predictor], examples: Sequence[Mapping[str, Any]]
) -> dict[str, Latency]:
    """Time one example after the other, ``BLOCK`` of them by each model before the next.

    The models take turns, and each turn begins with another one, so that whatever else the machine
    does affects all of them equally. A model that is served has the machine to itself: ``WARM_UP``
    examples of each turn are not counted, in which the caches and the threads of the model before
    it give way.

    Args:
        predictors: the models by name: functions from examples to predictions, which have finished
            computing when they return.
        examples: what to predict; none are left out of the timing, warm-up repeats some.
    """
    blocks = [examples[at : at + BLOCK] for at in range(0, len(examples), BLOCK)]
    times = _times(predictors, [[[one] for one in block] for block in blocks], WARM_UP)
    return {name: _latency([1e3 * one for one in seconds]) for name, seconds in times.items()}


def measure_fastest(
    predictors: Mapping[str, Predictor], examples: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Return the fewest milliseconds of each example in ``ROUNDS`` rounds by turns.

    What else a machine does only ever adds time, so these are steadier than medians; use them to
    choose between models, and ``measure_latencies`` to tell what users will see.
    """
    count = len(examples)
    times = _times(predictors, [[[one] for one in examples]] * ROUNDS, count)
    return {
        name: [1e3 * min(seconds[n::count]) for n in range(count)]
        for name, seconds in times.items()
    }


def measure_throughputs(
    predictors: Mapping[str, Predictor], examples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Return examples per second when all are given at once: the median of ``ROUNDS`` rounds.

    The models take turns as in ``measure_latencies``; one more round before is warm-up.
    """
    times = _times(predictors, [[examples]] * (1 + ROUNDS), 0)
    return {name: len(examples) / statistics.median(seconds[1:]) for name, seconds in times.items()}


def other_work() -> str | None:
    """Return the load of a machine that is too busy to time anything; ``None`` of an idle one."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > cores + 1 else None


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what timings depend on: processor, accelerator, versions; no host or user name."""
    return {
        "processor": _processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": _device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def describe_devices(devices: Mapping[str, torch.device]) -> dict[str, str]:
    """Return what ``describe_machine`` does, with the device of each model if they differ."""
    machine = describe_machine(next(iter(devices.values())))
    named = {name: _device_name(device) for name, device in devices.items()}
    if len({*named.values()}) > 1:
        machine["device"] = ", ".join(f"{device} ({name})" for name, device in named.items())
    return machine


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _times(
    predictors: Mapping[str, Predictor],
    turns: Sequence[Sequence[Sequence[Mapping[str, Any]]]],
    warm_up: int,
) -> dict[str, list[float]]:
    """Return the seconds of each call of each turn, by model; the first calls are made twice."""
    names = list(predictors)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number, calls in enumerate(turns):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for examples in calls[:warm_up]:
                predictors[name](examples)
            for examples in calls:
                begin = time.perf_counter()
                predictors[name](examples)
                times[name].append(time.perf_counter() - begin)
    return times


def _latency(times: Sequence[float]) -> Latency:
    if len(times) == 1:
        return Latency(times[0], (times[0], times[0]), 1)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, (low, high), len(times))


def _processor_name() -> str:
    # platform.processor() is empty or "x86_64" on Linux.
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
