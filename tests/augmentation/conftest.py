"""A tiny masked language model and vectors, saved, and no cache of the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
from masked_lms import VECTORS, masked_lm

from hf_distill.augmentation import WordSubstituter
from hf_distill.augmentation.masked_lm import MaskedLanguageModel


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    # The vectors of the extra `glove` may be installed or not.
    monkeypatch.setattr("hf_distill.augmentation.word_vectors.PACKAGE", "no_such_package")


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("masked_lm")
    model, tokenizer = masked_lm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def vectors_file(tmp_path: Path) -> Path:
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS)
    return path


@pytest.fixture(scope="session")
def substituter() -> WordSubstituter:
    return WordSubstituter(MaskedLanguageModel(*masked_lm(), device="cpu"))
