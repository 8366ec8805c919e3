"""What goes wrong with a push to the Hub, and what comes of it: a table.

    OMP_NUM_THREADS=1 python benchmarks/hub_faults.py [--record]

A Hub on this machine (``tests/hub/writable.py``) fails as it is told to. The student of a finished
run is pushed to it by ``hf-distill push`` with the real client, with its own waiting and trying
again, and once more when the Hub works.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from cache_faults import render
from checkpoint_faults import trainer_for
from report import record_part, replace_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from hub.writable import TOKEN, Fault, Hub, writable_hub

REPOSITORY = "tester/small"
PATIENCE = 45
"""Seconds until a push that gets no answer is interrupted; less than the server waits."""
Row = tuple[str, int, str]
ROUTES = {
    "making the repository": "/api/repos/create",
    "asking how to upload": "/preupload/",
    "asking where to upload": "/objects/batch",
    "uploading the weights": "/_lfs/",
    "the commit": "/commit/",
}
FAULTS: dict[str, tuple[int | str, tuple[str, ...]]] = {
    "HTTP 401": (401, tuple(ROUTES)),
    "HTTP 403": (403, tuple(ROUTES)),
    "HTTP 404": (404, tuple(ROUTES)),
    "HTTP 500": (500, tuple(ROUTES)),
    "the connection is cut in the middle of the request": ("cut", tuple(ROUTES)),
}


class Push(NamedTuple):
    """How a push ended."""

    status: int
    message: str
    seconds: float


def push(run: Path, url: str, patience: float = 900, **environment: str) -> Push:
    """``hf-distill push`` in a process of its own, with Ctrl-C when patience is over."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_distill", "push", str(run), "--hub_model_id", REPOSITORY],
        env=kept
        | {"HF_ENDPOINT": url, "HF_HOME": str(run.parent / "cache"), "HF_TOKEN": TOKEN}
        | {"HF_HUB_DISABLE_XET": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=900)
    found = re.search(r"error: (.*)", errors)
    message = "" if found is None else found[1].replace(str(run), "…")
    if "Traceback" in errors:
        message = f"TRACEBACK: {errors.strip().splitlines()[-1]}"
    return Push(process.returncode, message, time.perf_counter() - begin)


def contents(folder: Path) -> dict[str, bytes]:
    """All of a folder, but what the push writes anew each time."""
    left_out = ("README.md", "losses.png")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def outcome(run: Path, before: dict[str, bytes], hub: Hub, failed: Push) -> tuple[str, bool]:
    """What a failed push says; and whether all is there, here and, after one more push, there."""
    nothing_half = not hub.files(REPOSITORY)
    hub.fault = None
    again = push(run, hub.url)
    arrived = hub.files(REPOSITORY).get("model.safetensors") == before["model.safetensors"]
    whole = contents(run) == before
    names_the_way = "hf-distill push … --hub_model_id" in failed.message
    well = (failed.status, again.status) == (2, 0) and names_the_way
    told = failed.message.partition("small: ")[2].partition(". Nothing is lost")[0]
    return told or failed.message, well and nothing_half and arrived and whole


def tried(run: Path, folder: Path) -> list[Row]:
    """Every fault in every request."""
    before, rows = contents(run), []
    for fault, (what, places) in FAULTS.items():
        told: list[str] = []
        good, longest = 0, 0.0
        for number, place in enumerate(places):
            root = folder / f"{what} {number}"
            with writable_hub(root) as hub:
                hub.fault = Fault(ROUTES[place], what)
                failed = push(run, hub.url)
                says, well = outcome(run, before, hub, failed)
            longest = max(longest, failed.seconds)
            good += well
            told += [] if says in told else [says]
            print(f"{fault}, {place}: {failed.status}, {failed.seconds:.0f} s, {well}: {says}")
        rows.append(
            (
                f"{fault}: {', '.join(places)}",
                len(places),
                f"{good} × status 2 and the command to push later, nothing in the repository, all "
                f"of it here, and that command succeeded; at most {longest:.0f} s. "
                + "; ".join(f"“{text}”" for text in told),
            )
        )
    return rows


def unanswered(run: Path, folder: Path) -> list[Row]:
    """The Hub takes a request and never says anything."""
    before, rows = contents(run), []
    for number, place in enumerate(("making the repository", "the commit")):
        with writable_hub(folder / f"unanswered {number}") as hub:
            hub.fault = Fault(ROUTES[place], "stall")
            waited = push(run, hub.url, patience=PATIENCE)
            nothing_half = not hub.files(REPOSITORY)
            hub.fault = None
            again = push(run, hub.url)
            arrived = hub.files(REPOSITORY).get("model.safetensors") == before["model.safetensors"]
        still = "still waiting" if waited.seconds >= PATIENCE else "NOT waiting any more"
        well = nothing_half and arrived and again.status == 0 and contents(run) == before
        rows.append(
            (
                f"no answer: {place}",
                1,
                f"huggingface_hub sets no limit of time: {still} after {PATIENCE} s, when it was "
                f"ended by Ctrl-C (status {waited.status}); nothing in the repository, all of it "
                f"here, and the same command succeeded later: {well}",
            )
        )
        print(*rows[-1])
    return rows


def others(run: Path, folder: Path) -> list[Row]:
    """Faults that are not of a request."""
    before, rows = contents(run), []
    environments: dict[str, dict[str, Any]] = {
        "offline (HF_HUB_OFFLINE=1)": {"HF_HUB_OFFLINE": "1"},
        "a wrong token": {"HF_TOKEN": "hf_wrong"},
        "nobody at that address": {"HF_ENDPOINT": "http://127.0.0.1:9"},
    }
    for number, (what, environment) in enumerate(environments.items()):
        with writable_hub(folder / f"other {number}") as hub:
            failed = push(run, hub.url, **environment)
            says, well = outcome(run, before, hub, failed)
        rows.append((what, 1, f"as for HTTP errors: {well}; {failed.seconds:.0f} s. “{says}”"))
        print(*rows[-1])
    with writable_hub(folder / "once") as hub:
        hub.fault = Fault("/_lfs/", "cut", times=1)
        first = push(run, hub.url)
        arrived = hub.files(REPOSITORY).get("model.safetensors") == before["model.safetensors"]
    rows.append(
        ("the connection is cut once while the weights are uploaded", 1,
         f"the client tried again: status {first.status}, all arrived: {arrived}")
    )  # fmt: skip
    return rows


def main() -> None:
    """Try, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        trainer = trainer_for(run)
        trainer.train()
        trainer.save_model()
        trainer.save_state()
        trainer.create_model_card()
        rows = [*tried(run, folder), *unanswered(run, folder), *others(run, folder)]
    print(render(rows))
    if arguments.record:
        record_part("hub_faults", "push", {"rows": rows})
        replace_section("hub_faults", render(rows))


if __name__ == "__main__":
    main()
