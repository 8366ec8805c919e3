"""Families of encoders that can be exported: each one of the test zoo, with each head that it has.

    OMP_NUM_THREADS=1 python benchmarks/export_zoo.py

Exports tiny random models to ONNX, compares their logits with PyTorch's on two batches of different
sizes and lengths, and does the same with 8-bit weights. Results go into
``results/export_zoo-VERSION.json``, by the version of transformers, after each model; those that
are there are not measured again. The table in RESULTS.md has a column per version.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, record_part, replace_section
from torch import Tensor

from hf_distill.exporting.int8 import DYNAMIC, quantize
from hf_distill.exporting.onnx import export_onnx
from hf_distill.markdown import markdown_table
from hf_distill.onnx_model import ExportedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo import PAIRS, zoo_dataset, zoo_model

WRITING = ("text-generation", "summarization", "automatic-speech-recognition")
BATCHES = ((2, 7), (5, 12))
"""Rows, and tokens of texts."""


def batches(task: str, model: Any) -> list[dict[str, Tensor]]:
    """Return inputs of two sizes."""
    made = []
    for rows, length in BATCHES:
        columns = zoo_dataset(task, rows, labels=False).with_format("torch")[:]
        texts = {
            name: value[..., :length] if name in ("input_ids", "attention_mask") else value
            for name, value in columns.items()
            if name != "token_type_ids"
        }
        made.append(texts)
    if getattr(model.config, "is_encoder_decoder", False):  # these want one end in each text
        for batch in made:
            ids, ends = batch["input_ids"], batch["attention_mask"].sum(1) - 1
            ids[torch.arange(len(ids)), ends] = model.config.eos_token_id
    return made


def difference(model: Any, exported: ExportedModel, inputs: list[dict[str, Tensor]]) -> Any:
    """Return the largest difference of a logit, relative to the largest one if that is above 1.

    Logits of padding do not count: ModernBERT's see nothing, and depend on the kernel.
    """
    largest = 0.0
    for batch in inputs:
        with torch.no_grad():
            expected = model(**batch)
        found = exported(**batch)
        for name in (name for name in found if name.endswith("logits")):
            scale = max(1.0, float(expected[name].abs().max()))
            apart = (found[name] - expected[name]).abs()
            visible = batch.get("attention_mask")
            if visible is not None and apart.shape[:2] == visible.shape:
                apart = apart[visible.bool()]
            largest = max(largest, float(apart.max()) / scale)
    return largest


def measure(task: str, family: str, folder: Path) -> dict[str, Any]:
    """Export one model and compare it, or say why that cannot be done."""
    model = zoo_model(task, family, seed=0, layers=2 if family == "modernbert" else 1).eval()
    inputs = batches(task, model)
    try:
        exported, _ = export_onnx(model, None, folder / "model.onnx")
    except (ValueError, RuntimeError) as error:
        return {"error": str(error)}
    quantize(folder / "model.onnx", folder / "int8.onnx", DYNAMIC[0])
    rounded = ExportedModel.load(folder / "int8.onnx", exported.config)
    return {
        "float32": difference(model, exported, inputs),
        "int8": difference(model, rounded, inputs),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table: a row per model, a column per version of transformers.

    Args:
        results: by version, then by ``task/family``.
    """
    rows, failures = [], []
    for task, family in PAIRS:
        cells = []
        for found in results.values():
            one = found.get(f"{task}/{family}")
            if one is not None and "error" in one:
                cells.append("no")
                failures.append(f"- {task}, {family}: {one['error']}")
            elif one is not None:
                cells.append(f"{one['float32']:.0e} / {one['int8']:.2f}")
            else:
                cells.append("")
        if any(cells):
            rows.append([task, family, *cells])
    reasons = "\n".join(dict.fromkeys(failures))
    head = ["task", "family", *(f"transformers {name}" for name in results)]
    return markdown_table(head, rows) + (f"\n\n{reasons}" if reasons else "") + "\n"


def render() -> str:
    """Return the table of all results."""
    files = sorted(RESULTS.glob("export_zoo-*.json"))
    return table(
        {
            one.stem.removeprefix("export_zoo-"): json.loads(one.read_text(encoding="utf-8"))
            for one in files
        }
    )


def main() -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=sorted({task for task, _ in PAIRS}))
    tasks = parser.parse_args().tasks
    torch.set_num_threads(1)
    name = f"export_zoo-{version('transformers')}"
    file = RESULTS / f"{name}.json"
    for task, family in PAIRS:
        key = f"{task}/{family}"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if task in WRITING or task not in tasks or key in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            record_part(name, key, measure(task, family, Path(folder)))
        sys.stderr.write(f"{key}\n")
    replace_section("export_zoo", render())


if __name__ == "__main__":
    main()
