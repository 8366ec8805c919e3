"""Equal scores: the order of the vocabulary decides, on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from masked_lms import masked_lm

from hf_distill.augmentation.masked_lm import MaskedLanguageModel
from hf_distill.augmentation.vocabulary import WholeWords
from hf_distill.augmentation.word_vectors import open_word_vectors
from hf_distill.augmentation.words import word_spans


def test_a_model_that_finds_all_words_equally_likely_proposes_the_first_of_its_vocabulary() -> None:
    model, tokenizer = masked_lm()
    for parameter in model.cls.parameters():
        parameter.data.zero_()
    lm = MaskedLanguageModel(model, tokenizer, device="cpu")
    words = WholeWords.of(tokenizer, len(tokenizer))
    first = [text for text, one in zip(words.texts, words.anywhere, strict=True) if one]
    text = "london and the old bridge, a quick river"
    for place in lm.propose([text], [word_spans(text)], 4):
        own = text[slice(*place.span)]
        assert place.words == [word for word in first if word != own][:4]


def tied_vectors(folder: Path) -> Path:
    """200 words with one of five vectors each, in a mixed order."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(5, 7)).round(2)[random.integers(5, size=200)]
    path = folder / "vectors.txt"
    path.write_text("".join(f"w{i} {' '.join(map(str, v))}\n" for i, v in enumerate(matrix)))
    return path


def test_neighbours_that_are_equally_near_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tied_vectors(tmp_path)
    vectors = open_word_vectors(path)
    assert vectors is not None
    units = [vectors.vector(f"w{i}").astype(np.float64) for i in range(200)]
    found = vectors.neighbours([f"w{i}" for i in range(200)], 12)
    for i in range(200):
        cosines = [float((unit * units[i]).sum()) for unit in units]
        order = sorted((n for n in range(200) if n != i), key=lambda n: (-cosines[n], n))
        assert found[f"w{i}"] == [f"w{n}" for n in order[:12]]


_NEIGHBOURS = """
import json, sys
from hf_distill.augmentation.word_vectors import open_word_vectors
vectors = open_word_vectors(sys.argv[1])
print(json.dumps(vectors.neighbours([f"w{i}" for i in range(200)], 12)))
"""


def test_neighbours_do_not_depend_on_the_processor(tmp_path: Path) -> None:
    umath = np._core._multiarray_umath  # type: ignore[attr-defined]
    used = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__[name]]
    if not used:
        pytest.skip("NumPy has no features of this processor to turn off.")
    path = tied_vectors(tmp_path)
    vectors = open_word_vectors(path)
    assert vectors is not None
    done = subprocess.run(
        [sys.executable, "-c", _NEIGHBOURS, str(path)],
        env={
            **os.environ,
            "NPY_DISABLE_CPU_FEATURES": " ".join(used),
            "ATEN_CPU_CAPABILITY": "default",
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == vectors.neighbours([f"w{i}" for i in range(200)], 12)
