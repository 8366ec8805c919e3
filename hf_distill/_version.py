"""The version of hf_distill, in one place, and those that results depend on."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions that results depend on, for manifests."""
    import datasets
    import torch
    import transformers

    return {
        "hf_distill": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "datasets": datasets.__version__,
        "python": platform.python_version(),
    }
