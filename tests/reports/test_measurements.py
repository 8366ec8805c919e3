from __future__ import annotations

import getpass
import json
import platform
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_distill.reports import measurements


class Clock:
    """Time that passes only when a model computes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def model(self, name: str, seconds: Callable[[int], float]) -> Any:
        def predict(examples: Sequence[Mapping[str, Any]]) -> None:
            self.now += sum(seconds(example["n"]) for example in examples)
            self.calls.append((name, len(examples)))

        return predict


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measurements.time, "perf_counter", lambda: made.now)
    return made


ROWS = [{"n": n} for n in range(1, 6)]


def test_latency_is_median_and_quartiles_in_milliseconds(clock: Clock) -> None:
    models = {
        "fast": clock.model("fast", lambda n: 0.001 * n),
        "slow": clock.model("slow", lambda n: 0.010 * n),
    }
    measured = measurements.measure_latencies(models, ROWS)
    assert measured["fast"].median == pytest.approx(3.0)
    assert measured["fast"].quartiles == pytest.approx((2.0, 4.0))
    assert measured["slow"].median == pytest.approx(30.0)
    assert measured["slow"].runs == 5


def test_warm_up_is_not_counted(clock: Clock) -> None:
    """What another model has left in the caches slows the first calls of each turn."""
    calls = {"a": 0, "b": 0}
    last = ""

    def after_the_other(name: str) -> Callable[[int], float]:
        def seconds(n: int) -> float:
            nonlocal last
            calls[name] = 1 if last != name else calls[name] + 1
            last = name
            return 100.0 if calls[name] <= measurements.WARM_UP else 0.001

        return seconds

    rows = ROWS * 5
    models = {name: clock.model(name, after_the_other(name)) for name in calls}
    measured = measurements.measure_latencies(models, rows)
    for name in calls:
        assert measured[name].quartiles == pytest.approx((1.0, 1.0))
        assert measured[name].runs == len(rows)


def test_one_example_is_enough(clock: Clock) -> None:
    measured = measurements.measure_latencies({"a": clock.model("a", lambda n: 0.002)}, ROWS[:1])
    assert measured["a"].median == pytest.approx(2.0)
    assert measured["a"].runs == 1


def test_models_take_turns(clock: Clock) -> None:
    models = {name: clock.model(name, lambda n: 0.001) for name in "abc"}
    measurements.measure_latencies(models, ROWS * 5)
    block = measurements.WARM_UP + measurements.BLOCK
    order = "".join(name for name, _ in clock.calls)
    assert order[: 9 * block : block] == "abcbcacab"
    assert all(len({*order[at : at + block]}) == 1 for at in range(0, 9 * block, block))
    assert order[9 * block :] == "a" * 2 + "b" * 2 + "c" * 2  # of the last row, with a warm-up
    assert {count for _, count in clock.calls} == {1}


def test_the_fastest_time_of_each_example_does_not_see_a_busy_machine(clock: Clock) -> None:
    seconds = {"slow": (4.0, 0.0, 1.0), "fast": (0.0, 2.0, 2.0)}  # of each round, after warm-up
    busy = {
        name: iter([one for counted in rounds for one in (9.0, counted) for _ in ROWS])
        for name, rounds in seconds.items()
    }
    models = {
        "fast": clock.model("fast", lambda n: 0.001 * n + next(busy["fast"])),
        "slow": clock.model("slow", lambda n: 0.010 * n + next(busy["slow"])),
    }
    measured = measurements.measure_fastest(models, ROWS)
    assert measured["fast"] == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])
    assert measured["slow"] == pytest.approx([10.0, 20.0, 30.0, 40.0, 50.0])


def test_throughput_is_examples_a_second(clock: Clock) -> None:
    rounds = iter([9.0, 0.2, 0.4, 0.1])
    models = {"a": clock.model("a", lambda n: next(rounds) if n == 1 else 0.0)}
    assert measurements.measure_throughputs(models, ROWS) == {"a": pytest.approx(5 / 0.2)}
    assert clock.calls == [("a", 5)] * (1 + measurements.ROUNDS)


def test_machine_is_described_without_names() -> None:
    machine = measurements.describe_machine(torch.device("cpu"))
    assert machine["threads"] == str(torch.get_num_threads())
    assert machine["torch"] == torch.__version__
    assert machine["device"] == "cpu"
    assert machine["processor"]
    text = str(machine)
    assert not platform.node() or platform.node() not in text
    assert f"/{getpass.getuser()}" not in text


def test_number_format_is_that_of_most_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100, dtype=torch.float16), "b": torch.zeros(10)}
    save_file(tensors, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(30)}, tmp_path / "model-2.safetensors")
    files = measurements.weight_files(str(tmp_path))
    assert [path.name for path in files] == ["model-1.safetensors", "model-2.safetensors"]
    assert measurements.stored_as(files[:1]) == "float16"
    assert measurements.stored_as(files) == "float16"
    assert measurements.stored_as(files[1:]) == "float32"
    assert measurements.stored_as([]) is None


def test_model_of_the_hub_is_looked_for_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}))
    for name in ("model", "x-1", "x-2"):
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    cached = {f"{n}.safetensors": str(tmp_path / f"{n}.safetensors") for n in ("model", "x-1")}
    monkeypatch.setattr(
        measurements, "try_to_load_from_cache", lambda source, name: cached.get(name)
    )
    assert [path.name for path in measurements.weight_files("owner/model")] == ["model.safetensors"]
    cached["x-2.safetensors"] = str(tmp_path / "x-2.safetensors")
    cached["model.safetensors.index.json"] = str(index)
    found = [path.name for path in measurements.weight_files("owner/model")]
    assert found == ["x-1.safetensors", "x-2.safetensors"]
    monkeypatch.setattr(measurements, "try_to_load_from_cache", lambda source, name: None)
    assert measurements.weight_files("owner/model") == []


def test_devices_are_told_apart_where_they_differ() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert measurements.describe_devices({"a": cpu, "b": cpu})["device"] == "cpu"
    assert measurements.describe_devices({"a": cpu, "b": meta})["device"] == "cpu (a), meta (b)"
