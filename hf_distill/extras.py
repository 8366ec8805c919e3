"""Packages that are not always installed."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package is needed that comes with an extra of this one."""


def require(module: str, extra: str) -> ModuleType:
    """Import a package that only ``pip install "hf-distill[extra]"`` installs for certain.

    Args:
        module: the name to import, such as ``"optuna"`` or ``"scipy.stats"``.
        extra: the extra of hf-distill that installs it.

    Raises:
        MissingExtraError: it is not installed; one line that names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{package} is not installed: pip install "hf-distill[{extra}]"', name=package
        ) from None
