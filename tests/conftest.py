"""What all tests share: no Hub, quiet progress bars, repeatable hypothesis runs."""

from __future__ import annotations

import gc
import os
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import accelerate.utils.memory
import datasets
import hypothesis
import pytest
import torch
import transformers

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, help="At most so many cases of each test, spread evenly.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = config.getoption("--cases")
    if most is None:
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        id(of_test[place * (len(of_test) - 1) // max(1, most - 1)])
        for of_test in cases.values()
        for place in range(most)
    }
    config.hook.pytest_deselected(items=[one for one in items if id(one) not in kept])
    items[:] = [one for one in items if id(one) in kept]


def pytest_collection_finish() -> None:
    """Every `train` of Trainer collects garbage, which is a sixth of all tests' time; they need
    only what Python collects by itself."""
    gc.collect()
    gc.freeze()
    accelerate.utils.memory.gc = types.SimpleNamespace(collect=lambda: 0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bit-for-bit comparisons should not depend on how a sum is split between threads."""
    torch.set_num_threads(1)


@pytest.fixture
def saved_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], AbstractContextManager[list[Figure]]]:
    """A context manager for the figures that are saved inside."""
    from matplotlib.figure import Figure

    @contextmanager
    def saving() -> Iterator[list[Figure]]:
        figures: list[Figure] = []
        original = Figure.savefig

        def save(self: Figure, *args: Any, **kwargs: Any) -> None:
            figures.append(self)
            original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", save)
            yield figures

    return saving
