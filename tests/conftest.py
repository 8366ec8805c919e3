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
from rough_pictures import save_roughly

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")
datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
if not torch.accelerator.is_available():  # or each seed notes its call stack for a GPU to come
    torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = lambda seed: None


GRIDS = (
    "distributed/", "exporting/", "heads/", "layers/", "losses/", "students/", "teachers/caching/",
    "cli/test_sweep_command.py", "test_copies.py", "test_sharding.py",
)  # fmt: skip
"""Where the cases of a test are architectures, losses or moments with one property in common."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, help="At most so many cases of each test, spread evenly.")
    parser.addoption("--grid_cases", type=int, help="The same where cases have one property.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everywhere, in_grids = (config.getoption(name) for name in ("--cases", "--grid_cases"))
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = set()
    for name, of_test in cases.items():
        is_grid = name.removeprefix("tests/").startswith(GRIDS)
        most = min(everywhere or len(of_test), (is_grid and in_grids) or len(of_test))
        kept |= {of_test[i * (len(of_test) - 1) // max(1, most - 1)] for i in range(most)}
    config.hook.pytest_deselected(items=[one for one in items if one not in kept])
    items[:] = [one for one in items if one in kept]


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


@pytest.fixture(autouse=True)
def _rough_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"reports", "test_plotting.py"} & {*request.path.parts}:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_roughly)


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
