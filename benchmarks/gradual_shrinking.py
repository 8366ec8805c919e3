"""Cut at once, or cut a part, distil and cut again: the runs behind RESULTS.md.

Both ways end with the same shape after the same number of training steps on the prediction layer of
the same teacher, as in ``examples/gradual_shrinking.py``. Started, stopped and resumed as
``created_students.py``, with its options:

    python benchmarks/gradual_shrinking.py --data_dir DIR --squad_teacher DIR --large_encoder DIR \
        --small_encoder DIR
    python benchmarks/gradual_shrinking.py --table
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from created_students import SQUAD, Created, add_options
from report import RESULTS, circumstances, replace_section
from squad_table import spread
from task_distillation import run_command

STEPS = 300
WAYS = {
    "at-once": ("6 × 96 at once", ("96",)),
    "two": ("6 × 192, then 6 × 96", ("192", "96")),
    "three": ("6 × 288, 6 × 192, then 6 × 96", ("288", "192", "96")),
}


def measure(material: Created, way: str, seed: int) -> dict[str, Any]:
    """Cut and train by commands, width after width, and return the last scores."""
    source, widths = Path(material.teacher(SQUAD)), WAYS[way][1]
    typed, cpu = material.pairs(SQUAD), time.process_time()
    scores = []
    for width in widths:
        made = material.work / f"gradual-{way}-{width}-{seed}"
        shutil.rmtree(made, ignore_errors=True)
        run_command("create-student", str(source), "--hidden_size", width, "--task", SQUAD.task,
                    "--calibration_file", typed["--train_file"], "--max_length",
                    typed["--max_length"], "--seed", str(seed), "--output_dir",
                    str(made))  # fmt: skip
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
        source = made.with_name(f"{made.name}-trained")
        found = material.train(
            SQUAD, made, source, seed, "--max_steps", str(STEPS // len(widths)),
            "--teacher_outputs", material.outputs(SQUAD), *SQUAD.distillation.split(),
        )  # fmt: skip
        scores.append(found["eval"][SQUAD.metric])
    return {
        "way": way, "seed": seed, "steps": STEPS, "scores": scores,
        "cpu_seconds": round(time.process_time() - cpu, 1), **circumstances(),
    }  # fmt: skip


def render() -> str:
    """Return the table."""
    lines = ["| widths | F1 at the end | CPU seconds |", "|---|---|---|"]
    for way, (title, _) in WAYS.items():
        paths = sorted(RESULTS.glob(f"gradual-{way}-[0-9].json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if found:
            last = spread([one["scores"][-1] for one in found])
            cpu = sum(one["cpu_seconds"] for one in found) / len(found)
            lines.append(f"| {title} | {last} ({len(found)}) | {cpu:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has no result yet, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    options = parser.parse_args()
    for seed in () if options.table else options.seeds:
        material = Created(options)
        for way in WAYS:
            result = f"gradual-{way}-{seed}"
            material.run_once(result, SQUAD, partial(measure, material, way, seed))
    replace_section("gradual_shrinking", render())


if __name__ == "__main__":
    main()
