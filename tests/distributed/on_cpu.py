"""``hf-distill`` where accelerate would have GPUs: FSDP2 over CPU processes, for the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sharded import use_gloo_for_fsdp2

from hf_distill.cli.main import main

if __name__ == "__main__":
    use_gloo_for_fsdp2()
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(status or 0))  # gloo aborts at exit now and then
