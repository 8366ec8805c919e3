"""The tools that ours is compared with, and an environment of its own for each of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from report import FOLDER

ROOT = FOLDER.parent
TORCH = "torch==2.13.0"
"""In all environments: pip takes the build for CPUs where the machine offers one."""


class NotPossibleError(Exception):
    """A peer cannot be installed or run; the message is the reason, on one line."""


@dataclass(frozen=True)
class Peer:
    """A tool, and what its worker needs."""

    title: str
    script: str
    packages: tuple[str, ...] = ()
    """What pip installs. Without any, the worker runs in this environment."""
    constrained: bool = True
    """Whether the versions of ``constraints.txt`` hold for all other packages."""
    way: str = ""
    """A variant of the worker."""


OURS = Peer("hf_distill", "ours")
PEERS = {
    "snippet": Peer("`Trainer` with a hand-written `compute_loss`", "snippet"),
    "haystack": Peer(
        "Haystack 1.26.4.post0",
        "with_haystack",
        (
            "farm-haystack[inference]==1.26.4.post0",
            "transformers==4.46.3",
            "numpy<2",
            "pandas<2.3",
            "dill",
        ),
        constrained=False,
    ),
    "textbrewer": Peer(
        "TextBrewer 0.2.1.post1",
        "with_textbrewer",
        ("textbrewer==0.2.1.post1", "transformers", "datasets"),
    ),
    "modelopt": Peer(
        "Model Optimizer 0.47.0",
        "with_modelopt",
        # It imports requests, and does not say that it needs it.
        ("nvidia-modelopt==0.47.0", "requests", "transformers", "accelerate", "datasets"),
    ),
    "silverspoon": Peer("SilverSpoon-KD 0.1.0", "with_silverspoon", ("silverspoon-kd==0.1.0",)),
    "trl": Peer("TRL 1.16.0", "with_trl", ("trl==1.16.0", "transformers")),
    "sentence_transformers": Peer(
        "sentence-transformers 6.2.0",
        "with_sentence_transformers",
        ("sentence-transformers==6.2.0", "accelerate", "datasets"),
    ),
    "nlpaug": Peer(
        "nlpaug 1.1.11",
        "augment_nlpaug",
        ("nlpaug==1.1.11", "transformers==4.46.3", "numpy<2"),
        constrained=False,
    ),
    "scores": Peer("hf_distill, attention scores", "ours", way="scores"),
}


_failed: dict[str, NotPossibleError] = {}


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter of a peer, in an environment that is made if it is not there.

    What could not be installed is not tried again by the same process.

    Raises:
        NotPossibleError: pip could not install it.
    """
    peer = PEERS[name]
    if not peer.packages:
        return Path(sys.executable)
    environment = folder / name
    mark, wanted = environment / ".installed", "\n".join((TORCH, *peer.packages))
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        if name not in _failed:
            try:
                _install(peer, environment, folder / f"{name}.log")
            except NotPossibleError as error:
                _failed[name] = error
        if name in _failed:
            raise _failed[name]
        mark.write_text(wanted, encoding="utf-8")
    return _python_in(environment)


def _python_in(environment: Path) -> Path:
    return environment / "bin" / "python"


def _install(peer: Peer, environment: Path, log: Path) -> None:
    print(f"Installing {peer.title} into {environment}; pip writes to {log}.", flush=True)
    shutil.rmtree(environment, ignore_errors=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    python = str(_python_in(environment))
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--use-pep517"]
    if peer.constrained:
        pip += ["-c", str(ROOT / "constraints.txt")]
    _run([sys.executable, "-m", "venv", str(environment)], log)
    # PyTorch alone first, as the Makefile does: so pip does not weigh other builds of it.
    _run([*pip, TORCH], log)
    _run([*pip, TORCH, *peer.packages], log)


def _run(command: Sequence[str], log: Path) -> None:
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise NotPossibleError(f"cannot be installed: {reason_in(log)}")


def reason_in(log: Path) -> str:
    """Return the last line of an output that names an error, without addresses and bars."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(ERROR\b|[\w.]*(Error|Exception)\b)", line)]
    line = (named or lines or ["it printed nothing"])[-1]
    return re.sub(r"\S*(https?:/)?/\S*", "…", line).replace("|", "/")[:200]
