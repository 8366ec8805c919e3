r"""Whether two machines with other processors compute the same from the same seed.

    python benchmarks/two_machines.py --reader DIR --masked_lm DIR --train_file FILE --file FILE \
        --output one.json
    python benchmarks/two_machines.py ... --output other.json         # on the other machine
    python benchmarks/two_machines.py --compare one.json other.json

On each machine: ``augment`` (masked language model, without word vectors, which may be installed on
one machine only), ``cache`` and ``evaluate`` on the processor.
Augmented files, the manifests of stored outputs and the n-best answers have to be equal; logits and
scores, which are sums of floating-point numbers, may differ in their last digits, which is shown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from report import circumstances, read_json, replace_section, write_json

import hf_distill.augmentation.word_vectors
from hf_distill.cli.main import main as run_command

WINDOWS = ("--max_length", "384", "--doc_stride", "128")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What the three commands write, in a form that can be compared."""
    hf_distill.augmentation.word_vectors.open_word_vectors = lambda *_, **__: None
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for argv in (
            ["augment", "--model", options.masked_lm, "--squad_path", options.train_file,
             "--output_path", f"{at}/more.json", "--multiplication_factor", "3",
             "--device", "cpu", "--dtype", "float32"],
            ["cache", "--task", "question-answering", "--teacher_model", options.reader,
             "--train_file", options.train_file, "--output_dir", f"{at}/cache", "--use_cpu",
             *WINDOWS],
            ["evaluate", "--task", "question-answering", "--model", options.reader, "--file",
             options.file, "--output_dir", f"{at}/scores", "--use_cpu", *WINDOWS],
        ):  # fmt: skip
            if run_command(argv) != 0:
                raise RuntimeError(f"hf-distill {argv[0]} failed")
        best = read_json(at / "scores" / "nbest_predictions.json")
        manifest = read_json(at / "cache" / "manifest.json")
        parts = sorted(path.name for path in (at / "cache").glob("part-*"))
        return {
            "augmented": (at / "more.json").read_text(encoding="utf-8"),
            "manifest": manifest,
            "parts": len(parts),
            "logits": hashlib.sha256("".join(parts).encode()).hexdigest(),
            "answers": {
                id_: [[one["text"], round(one["score"], 7)] for one in many["answers"]]
                for id_, many in best.items()
            },
            **circumstances(),
        }  # fmt: skip


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How many things are equal, and by how much scores differ."""
    pairs = [(many, other["answers"][id_]) for id_, many in one["answers"].items()]
    same = [[a[0] for a in ours] == [b[0] for b in theirs] for ours, theirs in pairs]
    manifests = [
        {k: v for k, v in machine["manifest"].items() if k not in ("versions", "checksum")}
        for machine in (one, other)
    ]
    return {
        "machines": [f"{m['machine']}, torch {m['versions']['torch']}" for m in (one, other)],
        "augmented": one["augmented"] == other["augmented"],
        "augmented_bytes": len(one["augmented"].encode()),
        "manifest": manifests[0] == manifests[1],
        "logits": one["logits"] == other["logits"],
        "questions": len(pairs),
        "answers": sum(len(ours) for ours, _ in pairs),
        "same_lists": sum(same),
        "largest_difference": max(
            abs(a[1] - b[1])
            for (ours, theirs), equal in zip(pairs, same, strict=True)
            if equal
            for a, b in zip(ours, theirs, strict=True)
        ),
    }


def render(found: dict[str, Any]) -> str:
    """Return the table."""
    yes = {True: "the same", False: "differ"}
    lists = f"{found['same_lists']:,} of {found['questions']:,} lists the same, in the same order"
    rows = [
        (f"bytes of an augmented file, {found['augmented_bytes']:,}", yes[found["augmented"]]),
        ("manifests of stored outputs, without versions", yes[found["manifest"]]),
        (f"n-best lists, {found['answers']:,} answers", lists),
        ("bits of stored logits", yes[found["logits"]]),
        ("scores of answers", f"differ by {found['largest_difference']:.1g} at most"),
    ]
    lines = [f"| | {' and '.join(found['machines'])} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {what} |" for name, what in rows]) + "\n"


def main() -> None:
    """Compute on this machine, or compare two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reader", help="a question-answering model")
    parser.add_argument("--masked_lm", help="a masked language model")
    parser.add_argument("--train_file", help="SQuAD format, to augment and to store outputs of")
    parser.add_argument("--file", help="SQuAD format, to answer")
    parser.add_argument("--output", type=Path, help="a file for what this machine computed")
    parser.add_argument("--compare", nargs=2, type=Path, help="the files of two machines")
    options = parser.parse_args()
    if options.compare:
        found = compare(*map(read_json, options.compare))
        write_json("two_machines", found)
        replace_section("two_machines", render(found))
        print(render(found))
    else:
        options.output.write_text(json.dumps(run(options)), encoding="utf-8")


if __name__ == "__main__":
    main()
