"""The most that a fresh process holds while it augments ten times as many rows, or copies.

OMP_NUM_THREADS=1 python benchmarks/augmentation_memory.py --tokenizer MASKED_LM [--record]

The masked LM is tiny and random: its size does not matter here.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from memory import watch
from report import circumstances, replace_section, write_json
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from hf_distill.augmentation import augment_dataset, augment_squad

WORDS = 40
CASES = (
    # What is called, rows (or paragraphs), versions of each
    *(("augment_dataset", 1_000, 20), ("augment_dataset", 10_000, 20)),
    *(("augment_squad", 1_000, 2), ("augment_squad", 1_000, 20)),
)


def measure(tokenizer_path: str) -> list[dict[str, Any]]:
    results = []
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    for function, rows, versions in CASES:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(f"{folder}/model")
            config = BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
            )
            BertForMaskedLM(config).save_pretrained(f"{folder}/model")
            draw = random.Random(0)
            texts = [" ".join(draw.choices(words, k=WORDS)) for _ in range(rows)]
            (Path(folder) / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
            child = [sys.executable, __file__, "--child", function, str(versions), folder]
            done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
            results.append(
                {"function": function, "rows": rows, "versions": versions}
                | json.loads(done.stdout.splitlines()[-1])
            )
            print(results[-1], flush=True)
    return results


def augment_and_watch(function: str, versions: int, folder: str) -> None:
    """In a process of its own: augment, and say what was held at most."""
    texts = json.loads((Path(folder) / "texts.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {
        "model": f"{folder}/model",
        "multiplication_factor": versions,
        "device": "cpu",
    }
    output = Path(folder) / "augmented.json"
    if function == "augment_dataset":
        data = Dataset.from_dict({"text": texts})
        data.save_to_disk(f"{folder}/data")
        data = Dataset.load_from_disk(f"{folder}/data")
        output = Path(folder) / "augmented.arrow"

        def augment() -> None:
            augment_dataset(data, ["text"], cache_file_name=output, **options)
    else:
        paragraphs = [
            {
                "context": text,
                "qas": [
                    {
                        "id": str(number),
                        "question": "Which word is the first?",
                        "answers": [{"text": text.split()[0], "answer_start": 0}],
                    }
                ],
            }
            for number, text in enumerate(texts)
        ]
        source = Path(folder) / "squad.json"
        content = {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}
        source.write_text(json.dumps(content), encoding="utf-8")

        def augment() -> None:
            augment_squad(source, output, **options)

    del texts
    start = time.process_time()
    figures = watch(augment)
    seconds = time.process_time() - start
    print(json.dumps({**figures, "cpu_s": seconds, "written_bytes": output.stat().st_size}))


def render(results: list[dict[str, Any]]) -> str:
    lines = [
        "| function | rows × versions | written, MB | own memory before, MB | at most, MB | CPU s "
        "|",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        figures = [result[k] / 1e6 for k in ("written_bytes", "anonymous_before", "anonymous")]
        lines.append(
            f"| `{result['function']}` | {result['rows']:,} × {result['versions']} | "
            + " | ".join(f"{figure:.0f}" for figure in figures)
            + f" | {result['cpu_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", help="a model with a WordPiece tokenizer")
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        function, versions, folder = arguments.child
        augment_and_watch(function, int(versions), folder)
        return
    if not arguments.tokenizer:
        parser.error("--tokenizer is needed")
    results = measure(arguments.tokenizer)
    print(render(results))
    if arguments.record:
        write_json("augmentation_memory", {"results": results, **circumstances()})
        replace_section("augmentation_memory", render(results))


if __name__ == "__main__":
    main()
