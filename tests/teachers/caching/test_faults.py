"""Nothing wrong is ever used, and nothing good is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from caching_process import ROWS, ROWS_A_PART, TASK, cached, contents, finished
from datasets import Dataset
from runs import distil
from tiny import model_for, tokenizer
from transformers import default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill.teachers.caching import cache, cached_teacher, load_teacher_outputs, parts
from hf_distill.teachers.caching.folder import MANIFEST, CacheFolder

TOP_K = ("text-generation", "gpt2")
COLUMNS = (
    "teacher_logits",
    "teacher_token_ids",
    "teacher_rest",
    "teacher_hidden_states",
    "teacher_checksum",
)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MOST_ROWS", ROWS_A_PART)


def top_k_cache(folder: Path, **options: Any) -> Dataset:
    """A cache with every kind of column."""
    data, teacher = zoo_dataset(TOP_K[0], ROWS), zoo_model(*TOP_K, seed=1)
    return cached(folder, data, teacher, **{"top_k": 5, "hidden_layers": [0, 1], **options})


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_MOST_ROWS", ROWS_A_PART)
        top_k_cache(folder / "cache")
        data = zoo_dataset(TOP_K[0], ROWS, seed=9)
        options: Any = {"top_k": 5, "hidden_layers": [0, 1]}
        cached(folder / "other data", data, zoo_model(*TOP_K, seed=1), **options)
        data = zoo_dataset(TOP_K[0], ROWS)
        cached(folder / "other teacher", data, zoo_model(*TOP_K, seed=2), **options)
    return folder


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    """A finished cache, and two others beside it, to be damaged."""
    shutil.copytree(_made, tmp_path / "made")
    return tmp_path / "made"


def file_of(folder: Path, part: int) -> Path:
    (path,) = folder.glob(f"part-{part:05d}.*")
    return path


def flip(path: Path, place: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def place_of(path: Path, column: str) -> int:
    """Where in a file the values of a column begin."""
    with pyarrow.OSFile(str(path)) as file:
        array = pyarrow.ipc.open_stream(file).read_all()[column].chunk(0)
    values = array if array.type.num_fields == 0 else array.flatten()
    return path.read_bytes().index(values.to_numpy(zero_copy_only=False).tobytes())


# ---- the files of a cache ------------------------------------------------------------------------


def _flipped(column: str) -> Callable[[Path], None]:
    def damage(made: Path) -> None:
        path = file_of(made / "cache", 2)
        flip(path, place_of(path, column) + 1)

    return damage


def _cut(made: Path) -> None:
    path = file_of(made / "cache", 2)
    path.write_bytes(path.read_bytes()[:-40])


def _from(other: str) -> Callable[[Path], None]:
    def damage(made: Path) -> None:
        file_of(made / "cache", 2).unlink()
        path = file_of(made / other, 2)
        shutil.copy(path, made / "cache" / path.name)

    return damage


def _from_another_place(made: Path) -> None:
    file_of(made / "cache", 2).unlink()
    path = file_of(made / "cache", 3)
    shutil.copy(path, path.with_name(path.name.replace("00003", "00002")))


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"a bit of {column}": _flipped(column) for column in COLUMNS},
    "cut": _cut,
    "removed": lambda made: file_of(made / "cache", 2).unlink(),
    "of other data": _from("other data"),
    "of another teacher": _from("other teacher"),
    "of other rows": _from_another_place,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_named_and_only_it_is_computed_again(
    damage: str, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made / "cache"
    whole, before = contents(folder), finished(folder)
    name = file_of(folder, 2).name
    DAMAGES[damage](made)
    named = "part-00002" if damage == "removed" else file_of(folder, 2).name
    with pytest.raises(ValueError, match=named):
        load_teacher_outputs(zoo_dataset(TOP_K[0], ROWS), folder)
    again = top_k_cache(folder)
    if damage != "removed":
        assert f"{named} is computed again" in caplog.text
    assert contents(folder) == whole
    after = finished(folder)
    assert after.pop(name) != before.pop(name) and after == before
    expected = load_teacher_outputs(zoo_dataset(TOP_K[0], ROWS), folder)
    assert again[:] == expected[:]


@pytest.mark.parametrize("damage", ["cut", "emptied", "altered", "removed"])
def test_a_damaged_manifest_is_refused_and_written_again(
    damage: str, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made / "cache"
    whole, before = contents(folder), finished(folder)
    path = folder / MANIFEST
    text = path.read_text()
    if damage == "removed":
        path.unlink()
    elif damage == "altered":  # still JSON
        path.write_text(text.replace('"top_k": 5', '"top_k": 7'))
    else:
        path.write_text(text[: len(text) // 2 if damage == "cut" else 0])
    with pytest.raises(ValueError, match=MANIFEST):
        load_teacher_outputs(zoo_dataset(TOP_K[0], ROWS), folder)
    message = "holds other files" if damage == "removed" else "is damaged, and part-00000"
    with pytest.raises(ValueError, match=message):  # another teacher's run
        cached(folder, zoo_dataset(TOP_K[0], ROWS), zoo_model(*TOP_K, seed=2), top_k=5)
    assert finished(folder) == before
    top_k_cache(folder)
    assert contents(folder) == whole and finished(folder) == before
    assert (f"{MANIFEST} was damaged" in caplog.text) == (damage != "removed")


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files and no manifest"):
        cached(tmp_path)
    assert contents(tmp_path) == {"letter.txt": b"dear"}


def test_a_cache_of_another_version_is_refused(made: Path) -> None:
    folder = CacheFolder.open_finished(made / "cache")
    CacheFolder(folder.path, {**folder.manifest, "format": 99}).write_manifest()
    with pytest.raises(ValueError, match="written with format 99"):
        top_k_cache(made / "cache")


def test_too_little_room_is_noticed_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = sum(map(sum, zoo_dataset(TASK[0], ROWS)["attention_mask"]))
    padded = sum(map(len, zoo_dataset(TASK[0], ROWS)["attention_mask"]))
    most, least = padded * (2 + 16) * 4, tokens * (2 + 16) * 4
    free = least - 1
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=r"need up to 0\.0 MB, and there are 0\.0 MB free for cache"):
        cached(tmp_path / "cache", dtype="float32")
    assert not (tmp_path / "cache").exists()
    free = most
    cached(tmp_path / "cache", dtype="float32")


# ---- another run ---------------------------------------------------------------------------------


def _nudged() -> Any:
    teacher = zoo_model(*TASK, seed=1)
    with torch.no_grad():
        weight = next(teacher.parameters())
        weight[0, 0] += 1e-6
    return teacher


def _reconfigured() -> Any:
    teacher = zoo_model(*TASK, seed=1)
    teacher.config.layer_norm_eps = 1e-5
    return teacher


def _altered(**columns: Callable[[Any], Any]) -> Dataset:
    data = zoo_dataset(TASK[0], ROWS)
    values = {name: data[name][:] for name in data.column_names}
    for name, alter in columns.items():
        values[name] = alter(values[name])
    return Dataset.from_dict(values)


def _one_token(ids: list[list[int]]) -> list[list[int]]:
    return [*ids[:-1], [ids[-1][0] + 1, *ids[-1][1:]]]


def _shortened(rows: list[dict[str, Any]]) -> Any:
    short = {"input_ids", "attention_mask", "token_type_ids"}
    cut = [{k: v[:6] if k in short else v for k, v in row.items()} for row in rows]
    return default_data_collator(cut)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a weight by 1e-6": ({"teacher": _nudged}, r"teachers\.weights_sha256 was .* and is now"),
    "the teacher's configuration": (
        {"teacher": _reconfigured},
        r"signal\.config\.layer_norm_eps was 1e-12 and is now 1e-05",
    ),
    "a token": ({"dataset": lambda: _altered(input_ids=_one_token)}, r"data\.sha256 has changed"),
    "the order": (
        {"dataset": lambda: zoo_dataset(TASK[0], ROWS).shuffle(1)},
        r"data\.sha256 has changed",
    ),
    "a row less": (
        {"dataset": lambda: zoo_dataset(TASK[0], ROWS).select(range(ROWS - 1))},
        r"data\.rows was 20 and is now 19",
    ),
    "a column less": (
        {"dataset": lambda: zoo_dataset(TASK[0], ROWS).remove_columns("attention_mask")},
        r"data\.columns was",
    ),
    "the stride": (
        {
            "dataset": lambda: _altered(input_ids=_one_token),
            "preprocessing": lambda: {"max_length": 12, "doc_stride": 3},
        },
        r"preprocessing\.doc_stride was 4 and is now 3",
    ),
    "the data collator": ({"data_collator": lambda: _shortened}, r"data_collator\.inputs was"),
    "the number format": ({"dtype": lambda: "bfloat16"}, r'signal\.dtype was "float16" and is now'),
    "the hidden layers": ({"hidden_layers": lambda: [0]}, r"signal\.hidden_layers was \[1\]"),
    "the precision": ({"mixed_precision": lambda: "bf16"}, r'mixed_precision was "no" and is now'),
    "the attention": (
        {"teacher_attn_implementation": lambda: "eager"},
        r"computation\.attn_implementation was not given",
    ),
    "the teacher's number format": (
        {"teacher_dtype": lambda: "bfloat16"},
        r"teachers\.weights_sha256",
    ),
    "a second teacher": (
        {"teacher": lambda: [zoo_model(*TASK, seed=1), zoo_model(*TASK, seed=2)]},
        r"signal\.hidden_layers|teachers\.weights_sha256",
    ),
}
PREPARED = {"max_length": 12, "doc_stride": 4}


@pytest.mark.parametrize("change", CHANGES)
def test_another_run_is_refused_and_the_cache_is_kept(change: str, tmp_path: Path) -> None:
    made, message = CHANGES[change]
    folder = tmp_path / "cache"
    layers = [] if change == "a second teacher" else [1]  # several have none
    cached(folder, preprocessing=PREPARED, hidden_layers=layers)
    before = contents(folder)
    options = {name: make() for name, make in made.items()}
    with pytest.raises(ValueError, match=f"outputs of another run: .*({message})"):
        cached(folder, **{"preprocessing": PREPARED, "hidden_layers": layers, **options})
    assert contents(folder) == before
    if "dataset" in made:
        with pytest.raises(ValueError, match=f"{message}|lacks"):
            load_teacher_outputs(
                options["dataset"], folder, preprocessing=options.get("preprocessing", PREPARED)
            )


@pytest.mark.parametrize("manifest", ["there", "lost"])
def test_a_teacher_that_was_moved_is_the_same_teacher(manifest: str, tmp_path: Path) -> None:
    teacher = zoo_model(*TASK, seed=1)
    teacher.name_or_path = "here/old-name"
    cached(tmp_path / "cache", teacher=teacher)
    before = finished(tmp_path / "cache")
    if manifest == "lost":
        (tmp_path / "cache" / MANIFEST).unlink()
    teacher.name_or_path = "there/new-name"
    cached(tmp_path / "cache", teacher=teacher)
    assert finished(tmp_path / "cache") == before


def test_many_changes_are_not_all_listed(tmp_path: Path) -> None:
    cached(tmp_path / "cache")
    teacher = zoo_model(*TASK, seed=1)
    teacher.config.label2id = {f"label {i}": i for i in range(50)}
    with pytest.raises(ValueError, match=r"; and \d\d more\. Name another folder"):
        cached(tmp_path / "cache", teacher=teacher)


def test_where_labels_count_is_compared_but_not_what_they_are(tmp_path: Path) -> None:
    """Outputs are stored where the loss looks."""
    task = ("token-classification", "bert")
    data, teacher = zoo_dataset(task[0], ROWS), zoo_model(*task, seed=1)
    cached(tmp_path / "cache", data, teacher)
    labels = np.array(data["labels"][:])
    other = data.remove_columns("labels")
    others = np.where(labels == -100, -100, 2 - labels)
    assert (others != labels).any()
    relabelled = other.add_column("labels", others.tolist())
    cached(tmp_path / "cache", relabelled, teacher)
    load_teacher_outputs(relabelled, tmp_path / "cache")
    others[-1, 0] = -100 if others[-1, 0] != -100 else 1
    moved = other.add_column("labels", others.tolist())
    for use in (load_teacher_outputs, lambda rows, folder: cached(folder, rows, teacher)):
        with pytest.raises(ValueError, match=r"data\.sha256 has changed"):
            use(moved, tmp_path / "cache")


def test_top_k_is_compared(made: Path) -> None:
    with pytest.raises(ValueError, match=r"signal\.top_k was 5 and is now 6"):
        top_k_cache(made / "cache", top_k=6)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    texts = ["a word", "two of them", "3"]
    data = Dataset.from_dict(dict(tokenizer()(texts)))
    teacher = model_for("text-classification", seed=1)
    options: Any = {"hidden_layers": [], "data_collator": None}
    cached(tmp_path / "cache", data, teacher, processing_class=tokenizer(), **options)
    cased = tokenizer(lowercase=False)
    with pytest.raises(ValueError, match=r"signal\.tokenizer has changed"):
        cached(tmp_path / "cache", data, teacher, processing_class=cased, **options)


# ---- the user's own copy -------------------------------------------------------------------------


def learn(data: Dataset, path: Path) -> None:
    distil(
        TOP_K[0],
        path,
        student=zoo_model(*TOP_K, seed=0),
        teacher=None,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator},
        max_steps=-1,
        num_train_epochs=1,
    )


@pytest.mark.parametrize("column", [*COLUMNS, "input_ids"])
def test_a_bit_flipped_in_a_saved_copy_is_noticed_in_training(
    column: str, made: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    load_teacher_outputs(zoo_dataset(TOP_K[0], ROWS), made / "cache").save_to_disk(saved)
    if column == "teacher_logits":
        learn(Dataset.load_from_disk(saved), tmp_path)  # as it is
    (path,) = saved.glob("*.arrow")
    with pyarrow.OSFile(str(path)) as file:
        array = pyarrow.ipc.open_stream(file).read_all()[column].chunk(0)
    values = array if array.type.num_fields == 0 else array.flatten()
    content = values.to_numpy(zero_copy_only=False)[:8].tobytes()
    flip(path, path.read_bytes().index(content))
    with pytest.raises(ValueError, match="do not belong to its input"):
        learn(Dataset.load_from_disk(saved), tmp_path)


def test_rounded_outputs_are_noticed(made: Path, tmp_path: Path) -> None:
    data = load_teacher_outputs(zoo_dataset(TOP_K[0], ROWS), made / "cache")
    rounded = [np.round(np.array(row, np.float16), 1).tolist() for row in data["teacher_logits"]]
    kept = data.features["teacher_logits"]
    data = data.remove_columns("teacher_logits").add_column("teacher_logits", rounded, feature=kept)
    with pytest.raises(ValueError, match="do not belong to its input"):
        learn(data, tmp_path)


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    cached(Path("~/cache"))
    assert (tmp_path / "cache" / MANIFEST).is_file()
    data = zoo_dataset(TASK[0], ROWS)
    assert len(load_teacher_outputs(data, "~/cache")) == ROWS
    assert cached_teacher("~/cache").task == TASK[0]
