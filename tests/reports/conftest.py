from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def saved_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], AbstractContextManager[list[Figure]]]:
    """A context manager for the figures that are saved inside."""

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
