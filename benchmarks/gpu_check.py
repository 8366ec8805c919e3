"""Runs every path that only a GPU has, and prints a table of what came of it.

    python benchmarks/gpu_check.py --record        # on a machine with one GPU or more
    python benchmarks/gpu_check.py                 # without: says so, and tries its own code, tiny

Number formats and ``torch_compile`` in both stages, attention kernels by length, the loss between
attention scores against float64, intermediate layers against the prediction layer and against full
maps, caching, augmentation, and one training over all GPUs by ``accelerate launch`` with DDP and
with FSDP2. A path that fails does not stop the others; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gpu_paths import (
    ON_CPU,
    ON_GPU,
    Sizes,
    augmented,
    cached,
    full_maps,
    largest_difference,
    make_data,
    scores_against_float64,
    train,
)
from report import RESULTS, circumstances, read_json, replace_section, write_json
from torch.nn.attention import SDPBackend, sdpa_kernel

Check = Callable[[], dict[str, Any]]
CONFIGS = Path(__file__).resolve().parents[1] / "examples" / "accelerate"
STAGES = ("prediction", "intermediate")
FORMATS: dict[str, tuple[dict[str, Any], float]] = {
    "tf32": ({"tf32": True}, 0.02),
    "bf16": ({"bf16": True}, 0.1),
    "fp16": ({"fp16": True}, 0.1),
    "bf16, torch_compile": ({"bf16": True, "torch_compile": True}, 0.1),
}
"""Options, and by how much a loss may differ from that in float32, relative."""
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TEXT = (
    "river lake house garden green blue quick slow happy sad boy girl dog cat apple orange music "
    "hour unit long short old young stone water light dark road bridge ship king queen capital "
    "country big small near famous strong weak hand eye morning evening"
)


class NotTriedError(Exception):
    """A path that this machine cannot try."""


class WrongResultError(Exception):
    """A path that ran, with a result that is not what it has to be."""


def accept(found: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    """``found``, if none of its numbers is above its limit."""
    for name, limit in limits.items():
        if not found[name] <= limit:
            raise WrongResultError(f"{name} is {found[name]:.3g}, above {limit:g}")
    return found


def number_formats(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    for stage in STAGES:
        whole: dict[str, Any] = {}

        def float32(stage: str = stage, whole: dict[str, Any] = whole) -> dict[str, Any]:
            whole.update(train(sizes, stage=stage))
            return whole

        def other(name: str, stage: str = stage, whole: dict[str, Any] = whole) -> dict[str, Any]:
            options, limit = FORMATS[name]
            if name == "tf32" and not torch.cuda.is_available():
                raise NotTriedError("a GPU's")
            if "torch_compile" in options and sizes == ON_CPU:
                # A dry run tries this script, for which half a minute of C++ is not needed.
                options = {**options, "torch_compile_backend": "aot_eager"}
            found = train(sizes, stage=stage, **options)
            found["difference"] = largest_difference(found, whole)
            return accept(found, {"difference": limit})

        yield f"{stage}, float32", float32
        for name in FORMATS:
            yield f"{stage}, {name}", lambda name=name, other=other: other(name)  # type: ignore[misc]


def attention_kernels(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    for length in sizes.lengths:
        common = {"stage": "prediction", "length": length, "batch_size": sizes.batch_at(length)}
        for name in KERNELS:
            yield (
                f"SDPA {name}, {length:,} tokens, bf16",
                lambda name=name, common=common: with_kernel(sizes, name, common),  # type: ignore[misc]
            )
        yield (
            f"eager, {length:,} tokens, bf16",
            lambda common=common: train(sizes, bf16=True, attention="eager", **common),  # type: ignore[misc]
        )


def with_kernel(sizes: Sizes, name: str, common: dict[str, Any]) -> dict[str, Any]:
    if name == "memory-efficient" and not torch.cuda.is_available():
        raise NotTriedError("a GPU's")
    return train(sizes, bf16=True, kernels=sdpa_kernel([KERNELS[name]]), **common)


def attention_scores(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for route in ("gram", "rows"):
            for length in (sizes.lengths[0], sizes.lengths[len(sizes.lengths) // 2]):
                yield (
                    f"attention scores, {route}, {length:,} tokens, {str(dtype)[6:]}",
                    lambda dtype=dtype, route=route, length=length, limit=limit: accept(  # type: ignore[misc]
                        scores_against_float64(sizes, length, dtype, route),
                        {"error_of_loss": limit, "error_of_gradient": limit},
                    ),
                )


def intermediate_layers(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    for length in sizes.lengths:
        for stage in STAGES:
            yield (
                f"{stage}, {length:,} tokens, bf16",
                lambda stage=stage, length=length: train(  # type: ignore[misc]
                    sizes,
                    stage=stage,
                    length=length,
                    batch_size=sizes.batch_at(length),
                    bf16=True,
                ),
            )
        yield (
            f"all hidden states and full maps, {length:,} tokens, bf16",
            lambda length=length: full_maps(sizes, length, bf16=True),  # type: ignore[misc]
        )


def caching(sizes: Sizes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return accept(cached(sizes, folder), {"difference": 0.02})


def augmentation(sizes: Sizes) -> dict[str, Any]:
    whole, slow = augmented(sizes, "float32", TEXT.split())
    half, fast = augmented(sizes, "float16", TEXT.split())
    same = sum(one[0] == other[0] for one, other in zip(whole, half, strict=True)) / len(whole)
    return accept(
        {"words_per_second": fast, "in_float32": slow, "other_words": 1 - same},
        {"other_words": 0.1},
    )


def over_all_gpus(sizes: Sizes, config: str) -> Iterator[tuple[str, Check]]:
    """Train by one ``accelerate launch`` with all GPUs, against one process with its batch."""
    processes = torch.cuda.device_count()

    @cache
    def launched() -> dict[str, Any]:
        launcher = ["--config_file", str(CONFIGS / f"{config}.yaml")]
        if not processes:
            launcher = ["--config_file", str(CONFIGS / "two_processes_on_cpu.yaml")]
        launcher += ["--num_processes", str(processes or 2), "--mixed_precision", "no"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "found.json"
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "accelerate.commands.launch", *launcher),
                    *(__file__, "--worker", str(path)),
                    *(["--dry_run"] if sizes == ON_CPU else []),
                ],
                capture_output=True,
                text=True,
                timeout=1800,
            )
            if done.returncode or not path.exists():
                raise RuntimeError(done.stderr[-2000:])
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found

    def compared(stage: str) -> dict[str, Any]:
        if config == "fsdp2" and not processes:
            raise NotTriedError("accelerate has it for GPUs only")
        found = launched()[stage]
        if found["processes"] != (processes or 2):
            raise WrongResultError(f"{found['processes']} processes, not {processes or 2}")
        alone = train(sizes, stage=stage, batch_size=sizes.batch_size * found["processes"])
        found |= {"difference": largest_difference(found, alone), "ms_alone": alone["ms"]}
        return accept(found, {"difference": 1e-3})

    for stage in STAGES:
        yield f"{config} over all GPUs, {stage}", lambda stage=stage: compared(stage)  # type: ignore[misc]


def worker(sizes: Sizes, path: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    steps = sizes.steps + sizes.warm_up
    data = make_data(sizes, steps * sizes.batch_size * processes, sizes.length)
    found = {
        stage: {**train(sizes, stage=stage, data=data), "processes": processes} for stage in STAGES
    }
    if os.environ.get("RANK", "0") == "0":
        Path(path).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # gloo aborts at exit now and then


def all_checks(sizes: Sizes) -> Iterator[tuple[str, Check]]:
    yield from number_formats(sizes)
    yield from attention_kernels(sizes)
    yield from attention_scores(sizes)
    yield from intermediate_layers(sizes)
    yield "caching teacher outputs", lambda: caching(sizes)
    yield "augmentation, float16", lambda: augmentation(sizes)
    for config in ("ddp", "fsdp2"):
        yield from over_all_gpus(sizes, config)


def try_out(name: str, check: Check) -> dict[str, Any]:
    """What came of a path."""
    try:
        return {"path": name, "result": "ok", **check()}
    except NotTriedError as reason:
        return {"path": name, "result": "not tried", "why": str(reason)}
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        return {"path": name, "result": "FAILED", "why": f"{type(error).__name__}: {lines[-1]}"}


def in_numbers(row: dict[str, Any]) -> str:
    """The numbers of a row, and why it has none."""
    names = {"ms": "ms a step", "peak_gb": "GB at most"}
    cells = [
        f"{value:.4g} {names.get(name, name.replace('_', ' '))}"
        for name, value in row.items()
        if isinstance(value, float | int)
    ]
    return "; ".join([*cells, *([row["why"]] if "why" in row else [])]).replace("|", "\\|")


def render(result: dict[str, Any]) -> str:
    """Return the table, and where it is from."""
    gpus, cuda, versions = (result[name] for name in ("gpus", "cuda", "versions"))
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{len(gpus)} × {gpus[0]}, CUDA {cuda}, {libraries}.\n\n{table(result['rows'])}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| path | result | numbers |", "|---|---|---|"]
    lines += [f"| {row['path']} | {row['result']} | {in_numbers(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def gpus() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def main() -> int:
    """Try all paths, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    parser.add_argument("--dry_run", action="store_true", help="tiny models, a few steps")
    parser.add_argument(
        "--only",
        default="",
        help="a regular expression: only such paths; what is recorded of others stays",
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("hf_distill").setLevel(logging.ERROR)  # of teachers that know nothing
    found = gpus()
    dry = options.dry_run or not found
    sizes = ON_CPU if dry else ON_GPU
    if options.worker:
        worker(sizes, options.worker)
    if not found:
        print("There is no GPU here. A tiny dry run on the CPU tries this script, nothing else.")
    rows = []
    for name, check in all_checks(sizes):
        if re.search(options.only, name):
            rows.append(try_out(name, check))
            print(f"{rows[-1]['result']:>9}  {name}  {in_numbers(rows[-1])}", flush=True)
    print(table(rows))
    if options.record and not dry:
        result = {"rows": rows, "gpus": found, "cuda": torch.version.cuda, **circumstances()}
        if options.only:
            new = {row["path"]: row for row in rows}
            before = read_json(RESULTS / "gpu_check.json")["rows"]
            result["rows"] = [new.get(row["path"], row) for row in before]
        write_json("gpu_check", result)
        replace_section("gpu_check", render(result))
    elif options.record:
        print("Nothing is recorded of a dry run.")
    return int(any(row["result"] == "FAILED" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
