r"""``hf-distill demo`` with three seeds: the figures of README.

It times models, so let it have the machine to itself. What has a result is not run again:

    make shell
    python benchmarks/demo.py

As on a processor without fast bfloat16, for which the demo has six minutes:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/demo.py \
        --name avx2-demo --work_dir build/avx2-demo
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from report import FOLDER, RESULTS, circumstances, write_json
from task_distillation import run_command

PICTURE = FOLDER.parent / "docs" / "images" / "comparison.png"
KEPT = ("quality", "parameters", "size_on_disk", "latency", "throughput", "intervals", "agreement")


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Run the demo; what it predicted and what came of it."""
    began = time.perf_counter()
    run_command("demo", "--seed", str(seed), "--output_dir", str(folder))
    seconds = time.perf_counter() - began
    shrunk = json.loads((folder / "small/shrink.json").read_text(encoding="utf-8"))
    compared = json.loads((folder / "small/comparison/comparison.json").read_text("utf-8"))
    plan = shrunk["plan"]
    return {
        "seed": seed, "seconds": round(seconds), "shape": plan["shape"],
        "bf16": plan["decisions"]["bf16"]["value"],
        "predicted": {"speedup": plan["speedup"], "seconds": sum(plan["seconds"].values())},
        "steps": shrunk["seconds"],
        "models": {
            role: {name: value for name, value in one.items() if name in KEPT}
            for role, one in compared["models"].items()
        },
        **circumstances(),
    }  # fmt: skip


def main() -> None:
    """Run what has no result yet, and take the picture of the first seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="demo", help="of the results")
    parser.add_argument("--work_dir", default="build/demo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        folder = Path(options.work_dir) / str(seed)
        result = f"{options.name}-{seed}"
        if not (RESULTS / f"{result}.json").exists():
            write_json(result, measure(folder, seed))
            if result == "demo-0":
                shutil.copyfile(folder / "small/comparison/comparison.png", PICTURE)


if __name__ == "__main__":
    main()
