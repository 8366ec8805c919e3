"""What goes wrong while teacher outputs are cached, and what comes of it: a table.

    OMP_NUM_THREADS=1 python benchmarks/cache_faults.py [damaged full changed] [--record]

- ``damaged``: bits flipped, files cut, removed and mixed up.
- ``full``: a tmpfs without room for everything (needs root).
- ``changed``: the same folder with something else.

``cache_kills.py`` is about processes that are killed.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import torch
from datasets import Dataset
from report import record_part, replace_section
from transformers import BertConfig, BertForQuestionAnswering, default_data_collator

from hf_distill import cache_teacher_outputs
from hf_distill.alignment import SameEncoding
from hf_distill.heads import find_head
from hf_distill.teachers.caching import cache, load_teacher_outputs, parts
from hf_distill.teachers.columns import SignalDescription, TeacherSignalCollator

ROWS, ROWS_A_PART, LENGTH = 240, 12, 64
BITS = 200
MANIFEST = "manifest.json"
Row = tuple[str, int, str]


def teacher(seed: int = 0, **options: Any) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return BertForQuestionAnswering(
        BertConfig(vocab_size=1000, intermediate_size=512, **sizes, **options)
    )


def data(seed: int = 0, length: int = LENGTH) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 1000, (ROWS, length), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": (ids > 0).tolist()})


def cached(folder: Path, **changed: Any) -> Dataset:
    options = {"teacher": None, "dataset": None, "batch_size": 4, "use_cpu": True, **changed}
    given_teacher, given_data = options.pop("teacher"), options.pop("dataset")
    return cache_teacher_outputs(
        teacher() if given_teacher is None else given_teacher,
        data() if given_data is None else given_data,
        output_dir=folder,
        data_collator=default_data_collator,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("part-*.arrow")}


def refusal(work: Callable[[], Any]) -> str | None:
    """The message of the error that something ends with; ``None`` if it does not."""
    try:
        work()
    except (ValueError, OSError) as error:
        return str(error)
    return None


# ---- damaged -------------------------------------------------------------------------------------


def damaged(whole: dict[str, bytes], folder: Path) -> list[Row]:
    dice = random.Random(0)
    cached(folder / "cache")
    cached(folder / "other data", dataset=data(1))
    cached(folder / "other teacher", teacher=teacher(1))
    rows = []
    path = next((folder / "cache").glob("part-00007.*"))
    content = path.read_bytes()
    with pyarrow.OSFile(str(path)) as file:
        table = pyarrow.ipc.open_stream(file).read_all()
    places: dict[str, tuple[int, int]] = {"schema, offsets, padding": (0, len(content))}
    for name in table.column_names:
        values = table[name].chunk(0)
        values = values if values.type.num_fields == 0 else values.flatten()
        buffer = values.to_numpy(zero_copy_only=False).tobytes()
        places[name] = (content.index(buffer), len(buffer))
    for name, (start, size) in places.items():
        altered = (flipped(content, start + dice.randrange(size), dice) for _ in range(BITS))
        rows.append((f"a bit of a part: {name}", BITS, tried(path, altered, whole)))
    cuts = (content[: dice.randrange(len(content))] for _ in range(BITS))
    rows.append(("a part cut short", BITS, tried(path, cuts, whole)))
    rows.append(("a part removed", 1, tried(path, iter([None]), whole)))
    for other in ("other data", "other teacher", "cache"):
        number = 8 if other == "cache" else 7
        source = next((folder / other).glob(f"part-{number:05d}.*"))
        copy = path.with_name(source.name.replace(f"{number:05d}", "00007"))
        path.unlink()
        copy.write_bytes(source.read_bytes())
        what = "of other rows" if other == "cache" else f"of a cache of {other.replace('_', ' ')}"
        rows.append((f"a part {what} in its place", 1, tried(copy, iter([b""]), whole, keep=True)))
    manifest = folder / "cache" / MANIFEST
    text = manifest.read_bytes()
    cuts = (text[: dice.randrange(len(text))] for _ in range(BITS))
    rows.append(("the manifest cut short", BITS, tried(manifest, cuts, whole)))
    altered = (flipped(text, dice.randrange(len(text)), dice) for _ in range(BITS))
    rows.append(("a bit of the manifest", BITS, tried(manifest, altered, whole)))
    return rows + saved_copy(folder, dice)


def flipped(content: bytes, place: int, dice: random.Random) -> bytes:
    altered = bytearray(content)
    altered[place] ^= 1 << dice.randrange(8)
    return bytes(altered)


def tried(
    path: Path, versions: Iterator[bytes | None], whole: dict[str, bytes], *, keep: bool = False
) -> str:
    """Put something else in the place of a file: is it refused, and made good again?"""
    folder = path.parent
    refused = named = 0
    for times, version in enumerate(versions):
        if version is None:
            path.unlink()
        elif not keep:
            path.write_bytes(version)
        message = refusal(lambda: load_teacher_outputs(data(), folder))
        refused += message is not None
        named += message is not None and path.name.split(".")[0] in message
        if times < 3 or message is None:
            # Computing again takes longer than looking; the file is put back otherwise.
            before = finished(folder)
            cached(folder)
            after = finished(folder)
            again = [name for name, value in before.items() if after.get(name) != value]
            if contents(folder) != whole or len(again) > 1:
                return f"NOT made good: {again}"
        else:
            path.write_bytes(whole[path.name])
    return (
        f"{refused} refused, {named} by the file's name; made good by the same call, which kept "
        "the other parts"
    )


def saved_copy(folder: Path, dice: random.Random) -> list[Row]:
    """Bits in the user's own copy of the data set, with the columns."""
    load_teacher_outputs(data(), folder / "cache").save_to_disk(folder / "saved")
    (path,) = (folder / "saved").glob("*.arrow")
    content = path.read_bytes()
    rows = []
    for name in ("teacher_logits", "teacher_checksum", "input_ids"):
        with pyarrow.OSFile(str(path)) as file:
            values = pyarrow.ipc.open_stream(file).read_all()[name].chunk(0)
        values = values if values.type.num_fields == 0 else values.flatten()
        buffer = values.to_numpy(zero_copy_only=False).tobytes()
        start, found = content.index(buffer), 0
        for _ in range(BITS):
            path.write_bytes(flipped(content, start + dice.randrange(len(buffer)), dice))
            found += refusal(lambda: read_all(Dataset.load_from_disk(folder / "saved"))) is not None
        path.write_bytes(content)
        rows.append((f"a bit of the saved data set: {name}", BITS, f"{found} refused in training"))
    if refusal(lambda: read_all(Dataset.load_from_disk(folder / "saved"))) is not None:
        raise RuntimeError("the data set as it was is refused")
    return rows


def read_all(dataset: Dataset) -> None:
    """What the data loader of a training does."""
    description, head = SignalDescription.of(dataset), find_head(teacher())
    assert description is not None and head is not None
    collator = TeacherSignalCollator(default_data_collator, head, description, SameEncoding(head))
    for start in range(0, len(dataset), 16):
        collator([dataset[i] for i in range(start, min(start + 16, len(dataset)))])


# ---- a full disk, another run --------------------------------------------------------------------


@contextmanager
def little_room(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def full(whole: dict[str, bytes], folder: Path) -> list[Row]:
    small = folder / "small"
    rows = []
    with little_room(small, 32 << 10):
        message = refusal(lambda: cached(small / "cache"))
        nothing = not any(small.iterdir())
        rows.append(
            ("too little room, known beforehand", 1, f"“{message}” Nothing written: {nothing}")
        )
    small.rmdir()
    with little_room(small, 80 << 10):
        (small / "of others").write_bytes(bytes(20 << 10))
        check, cache._check_place = cache._check_place, lambda *given: None
        message = refusal(lambda: cached(small / "cache"))
        cache._check_place = check
        there, before = contents(small / "cache"), finished(small / "cache")
        right = there.items() <= whole.items()
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        cached(small / "cache")
        after = finished(small / "cache")
        kept = all(after[name] == value for name, value in before.items())
        equal = contents(small / "cache") == whole
    outcome = (
        f"“{message}” {len(before)} parts finished, nothing half-written: {right}. With more room: "
        f"those kept: {kept}, all files as on a large disk: {equal}"
    )
    rows.append(("the disk runs full while caching (tmpfs)", 1, outcome))
    return rows


def changed(whole: dict[str, bytes], folder: Path) -> list[Row]:
    prepared = {"max_length": LENGTH, "doc_stride": 16}
    cached(folder / "cache", preprocessing=prepared)
    nudged = teacher()
    with torch.no_grad():
        next(nudged.parameters())[0, 0] += 1e-6
    text = [list(ids) for ids in data()["input_ids"]]
    text[100][5] += 1
    column = data().remove_columns("input_ids")
    cases: dict[str, dict[str, Any]] = {
        "one weight of the teacher, by 1e-6": {"teacher": nudged},
        "the teacher's configuration": {"teacher": teacher(layer_norm_eps=1e-5)},
        "one token of the data": {"dataset": column.add_column("input_ids", text)},
        "the order of the rows": {"dataset": data().shuffle(seed=0)},
        "rows left out": {"dataset": data().select(range(100))},
        "max_length": {
            "dataset": data(length=48),
            "preprocessing": {**prepared, "max_length": 48},
        },
        "dtype": {"dtype": "float32"},
        "hidden_layers": {"hidden_layers": [1]},
        "mixed_precision": {"mixed_precision": "bf16"},
        "teacher_dtype": {"teacher_dtype": "bfloat16"},
    }
    rows = []
    kept = contents(folder / "cache")
    for what, options in cases.items():
        given = {"preprocessing": prepared, **options}
        message = refusal(lambda given=given: cached(folder / "cache", **given))  # type: ignore[misc]
        said = "NOT refused" if message is None else message.partition(": ")[2]
        said = said.removesuffix(" Name another folder, or delete this one.")
        lost = "" if contents(folder / "cache") == kept else "; the cache was altered"
        rows.append((f"another run: {what}", 1, f"“{said}”{lost}"))
    return rows


TRIALS = {"damaged": damaged, "full": full, "changed": changed}


def render(rows: list[Row]) -> str:
    lines = ["| what was done | times | what came of it |", "|---|---|---|"]
    lines += [f"| {what} | {times} | {outcome} |" for what, times, outcome in rows]
    return "\n".join(lines) + "\n"


def render_trials(results: dict[str, Any]) -> str:
    """Return the table of all trials."""
    order = [name for name in ("killed", *TRIALS) if name in results]
    return render([row for name in order for row in results[name]["rows"]])


def record(trial: str, rows: list[Row]) -> None:
    """Put the rows of one trial into the table of all."""
    results = record_part("cache_faults", trial, {"rows": rows})
    replace_section("cache_faults", render_trials(results))


def main() -> None:
    """Try, print, and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"of {', '.join(TRIALS)}; all by default")
    parser.add_argument("--record", action="store_true", help="write results/ and RESULTS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    parts._MOST_ROWS = ROWS_A_PART
    for name in arguments.what or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            cached(Path(folder) / "whole")
            found = TRIALS[name](contents(Path(folder) / "whole"), Path(folder))
        print(render(found), flush=True)
        if arguments.record:
            record(name, found)


if __name__ == "__main__":
    main()
