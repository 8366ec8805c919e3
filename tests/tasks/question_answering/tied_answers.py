"""Prints the n best answers of windows whose spans are all worth the same, as JSON."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import numpy as np
from datasets import Dataset

if __name__ == "__main__":
    # Without the rest of the package, which has PyTorch and transformers imported.
    name = "hf_distill.tasks.question_answering"
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(Path(__file__).parents[3].joinpath(*name.split(".")))]
    sys.modules[name] = module_from_spec(spec)

from hf_distill.tasks.question_answering.postprocessing import postprocess

LENGTH = 300


def tied_answers() -> list[list[tuple[int, int]]]:
    offsets = [None, *([5 * i, 5 * i + 4] for i in range(LENGTH))]
    names = ["one", "two"]
    features = Dataset.from_dict(
        {"example_id": names, "offset_mapping": [offsets] * 2, "no_answer_position": [0, 0]}
    )
    examples = Dataset.from_dict({"id": names, "context": ["abcd " * LENGTH] * 2})
    logits = np.zeros((2, LENGTH + 1))
    logits[1, LENGTH // 2 :] = 1.0
    predictions = postprocess(examples, features, logits, logits)
    return [[(answer.start, answer.end) for answer in one.answers] for one in predictions]


if __name__ == "__main__":
    print(json.dumps(tied_answers()))
