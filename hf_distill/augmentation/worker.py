"""A process that computes parts: ``python -m hf_distill.augmentation.worker TASK``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hf_distill.augmentation.parts import Parts
from hf_distill.augmentation.processes import Rank, compute_share


def main(task: str) -> None:
    """Compute a share of the parts, as long as the process that asked for it lives.

    Args:
        task: a folder, the index of this process, how many there are, the device and the id of
            the process that asked, in JSON.
    """
    folder, index, count, device, parent = json.loads(task)
    compute_share(
        Parts(Path(folder)),
        Rank(index, count),
        None,
        device,
        is_wanted=lambda: os.getppid() == parent,
    )


if __name__ == "__main__":
    main(sys.argv[1])
