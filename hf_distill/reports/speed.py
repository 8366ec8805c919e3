"""How fast models answer, measured side by side, and on what machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_distill.reports.comparison import Latency

Predictor = Callable[[Sequence[Mapping[str, Any]]], object]

WARM_UP = 3
ROUNDS = 3


def measure_latencies(
    predictors: Mapping[str, Predictor], examples: Sequence[Mapping[str, Any]]
) -> dict[str, Latency]:
    """Time one example after the other, each by all models before the next.

    The models take turns, and each turn begins with another one, so that whatever else the machine
    does meets all of them alike. The first ``WARM_UP`` turns are not counted.

    Args:
        predictors: the models by name: functions from examples to predictions, which have finished
            computing when they return.
        examples: what to predict; none are left out of the timing, warm-up repeats the first.

    Returns:
        The latency of each model.
    """
    names = list(predictors)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn, example in enumerate([*examples[:WARM_UP], *examples]):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = _time(predictors[name], [example])
            if turn >= min(WARM_UP, len(examples)):
                times[name].append(1e3 * seconds)
    return {name: _latency(of_model) for name, of_model in times.items()}


def measure_throughputs(
    predictors: Mapping[str, Predictor], examples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Examples per second when all are given at once: the median of ``ROUNDS`` rounds.

    The models take turns as in ``measure_latencies``; one more round before is warm-up.
    """
    names = list(predictors)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds = _time(predictors[name], examples)
            if turn > 0:
                times[name].append(seconds)
    return {name: len(examples) / statistics.median(of_model) for name, of_model in times.items()}


def describe_machine(device: torch.device) -> dict[str, str]:
    """What timings depend on: processor, threads, accelerator, versions. No host or user name."""
    machine = {
        "processor": _processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": str(device.type),
    }
    if device.type == "cuda":
        machine["device"] = torch.cuda.get_device_name(device)
    machine["python"] = platform.python_version()
    machine["torch"] = torch.__version__
    machine["transformers"] = transformers.__version__
    return machine


def _time(predictor: Predictor, examples: Sequence[Mapping[str, Any]]) -> float:
    begin = time.perf_counter()
    predictor(examples)
    return time.perf_counter() - begin


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
