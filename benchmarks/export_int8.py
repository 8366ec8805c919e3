"""What 8-bit weights cost and gain: each way to quantize a fine-tuned model, scored and timed.

    OMP_NUM_THREADS=1 python benchmarks/export_int8.py --model MODEL --file dev.json --name squad

The original, its float32 export and each int8 export are scored on all of the data and timed in
turns in one process. ``per matrix`` is ONNX Runtime's default. Each call puts its result into
``results/export_int8.json`` and the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from report import RESULTS, record_part, replace_section
from transformers import AutoConfig

from hf_distill.exporting.export import latencies_by_shape
from hf_distill.exporting.int8 import DYNAMIC, quantize
from hf_distill.exporting.onnx import export_onnx
from hf_distill.heads import head_of_class
from hf_distill.loading import load_fine_tuned, load_tokenizer
from hf_distill.markdown import markdown_table
from hf_distill.onnx_model import ExportedModel
from hf_distill.scoring import score_model
from hf_distill.tasks import create_task
from hf_distill.tasks.options import TaskArguments

PER_MATRIX = DYNAMIC[0]._replace(name="per matrix", per_channel=False)


def measure(source: str, file: str, options: TaskArguments) -> dict[str, Any]:
    """Score and time every way."""
    config = AutoConfig.from_pretrained(source)
    head = head_of_class(config.architectures[0], config)
    assert head is not None
    task = create_task(head.task, options)
    model = load_fine_tuned(head.auto_model, source, task=head.task)
    tokenizer = load_tokenizer(source)
    examples = task.load_data(file)
    models: dict[str, Any] = {"original": model}
    sizes = {"original": sum(p.numel() * p.element_size() for p in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "model.onnx"
        models["float32"], _ = export_onnx(model, tokenizer, full)
        sizes["float32"] = full.stat().st_size
        for number, how in enumerate((PER_MATRIX, *DYNAMIC)):
            path = Path(folder) / f"{number}.onnx"
            quantize(full, path, how)
            name = f"int8 {how.name}"
            models[name], sizes[name] = ExportedModel.load(path, config), path.stat().st_size
        quality = {
            name: score_model(task, one, tokenizer, examples, use_cpu=True).metrics
            for name, one in models.items()
        }
        times = latencies_by_shape(models, tokenizer, task)
    return {
        "task": task.name,
        "examples": len(examples),
        "sizes": sizes,
        "quality": quality,
        "milliseconds": {
            shape: {name: one.median for name, one in of_shape.items()}
            for shape, of_shape in times.items()
        },
    }


def table(name: str, result: dict[str, Any]) -> str:
    """Return the Markdown table of one call."""
    metric = {"question-answering": "f1", "token-classification": "f1"}.get(
        result["task"], "accuracy"
    )
    shapes = result["milliseconds"]
    rows = []
    for way, quality in result["quality"].items():
        speeds = [f"{times['original'] / times[way]:.2f}" for times in shapes.values()]
        size = f"{result['sizes'][way] / 1e6:.0f}"
        rows.append([way, f"{quality[metric]:.1f}", f"{quality['loss']:.3f}", size, *speeds])
    head = ["weights", metric, "label loss", "MB", *(f"speed, {shape}" for shape in shapes)]
    about = f"**{name}** ({result['task']}, {result['examples']} examples, {result['machine']}, "
    about += f"threads: {result['threads']}, {result['date']}); speed: original time / time.\n\n"
    return about + markdown_table(head, rows)


def render(results: dict[str, Any]) -> str:
    """Return the tables of all calls."""
    return "\n\n".join(table(*one) for one in results.items()) + "\n"


def main() -> None:
    """Measure, and write what has been measured so far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--max_length", type=int)
    arguments = parser.parse_args()
    options = TaskArguments(max_length=arguments.max_length)
    record_part("export_int8", arguments.name, measure(arguments.model, arguments.file, options))
    results = json.loads((RESULTS / "export_int8.json").read_text(encoding="utf-8"))
    replace_section("export_int8", render(results))


if __name__ == "__main__":
    main()
