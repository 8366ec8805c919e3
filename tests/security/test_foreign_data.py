"""Data, archives and settings of others: nothing in them is run, nothing leaves its place."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cli.cli_runs import squad
from payloads import Payload, code, plant

from hf_distill.augmentation.vector_files import find_file, read_vectors
from hf_distill.augmentation.word_vectors import open_word_vectors
from hf_distill.cli.config_files import load_yaml
from hf_distill.recipes import load_recipe
from hf_distill.tasks.question_answering import load_question_answering_dataset
from hf_distill.tasks.tables import load_table

VECTORS = b"paris 1.0 0.0\nrome 0.0 1.0\nseine 1.0 1.0\n"


def files_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("load", [load_question_answering_dataset, load_table])
def test_a_data_set_folder_with_a_script(load: Any, marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    (folder / "questions.py").write_text(code(marker))
    (folder / "data.json").write_text(json.dumps(squad()))
    with pytest.raises(ValueError, match="questions"):
        load(str(folder))
    with pytest.raises(ValueError):
        load(str(folder / "questions.py"))


@pytest.mark.parametrize("name", ["train.json", "train.pkl", "train.bin", "train.parquet"])
@pytest.mark.parametrize("load", [load_question_answering_dataset, load_table])
def test_a_data_file_that_is_a_pickle(load: Any, name: str, marker: Path, tmp_path: Path) -> None:
    plant(tmp_path / name, marker, as_torch=False)
    with pytest.raises(ValueError):
        load(str(tmp_path / name))


def test_ids_and_titles_never_become_paths(
    marker: Path, questions: Path, train: Any, tmp_path: Path
) -> None:
    content = squad()
    for article in content["data"]:
        article["title"] = "../../escaped"
        for place, paragraph in enumerate(article["paragraphs"]):
            for number, row in enumerate(paragraph["qas"]):
                row["id"] = f"../../escaped-{place}-{number}"
    questions.write_text(json.dumps(content))
    before = files_under(tmp_path)
    above = set(tmp_path.parent.iterdir())
    status, said = train("--record_steps", 1)
    assert status == 0, said
    new = files_under(tmp_path) - before
    assert new and all(name == "out" or name.startswith("out/") for name in new)
    assert not any("escaped" in name for name in new)
    assert set(tmp_path.parent.iterdir()) == above
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert "../../escaped-0-0" in predictions


def test_names_in_an_archive_never_become_paths(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "vectors.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("../../escaped.txt", VECTORS)
    before = files_under(tmp_path)
    words = [vector.word for vector in read_vectors(*find_file(archive))]
    assert words == ["paris", "rome", "seine"]
    assert files_under(tmp_path) == before


def test_one_of_several_files_in_an_archive_must_be_named(tmp_path: Path) -> None:
    archive = tmp_path / "vectors.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("one.txt", VECTORS)
        content.writestr("../one.vec", VECTORS)
    with pytest.raises(ValueError, match=r"one\.txt, \.\./one\.vec; name one"):
        find_file(archive)
    assert find_file(archive / "one.txt") == (archive, "one.txt")


@pytest.mark.parametrize("suffix", [".zip", ".txt.gz"])
def test_an_archive_that_unpacks_to_one_endless_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"vectors{suffix}"
    zeros = b"0" * (1 << 26)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
            content.writestr("vectors.txt", zeros)
    else:
        path.write_bytes(gzip.compress(zeros, 1))
    assert path.stat().st_size < 1 << 20
    del zeros
    tracemalloc.start()
    with pytest.raises(ValueError, match="line 1: expected a word and its vector"):
        open_word_vectors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 25


def test_an_archive_with_more_words_than_asked_for_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt.gz"
    # After its first words it is damaged, which nobody notices who does not read on.
    whole = gzip.compress(b"".join(b"word%d 1.0 2.0\n" % i for i in range(200_000)))
    path.write_bytes(whole[: len(whole) // 2])
    assert len(open_word_vectors(path, max_words=10)) == 10


@pytest.mark.parametrize(
    "text",
    [
        "student_model: !!python/object/apply:builtins.exec [{code!r}]",
        "student_model: !!python/object/new:builtins.exec [{code!r}]",
        "? !!python/name:builtins.exec\n: 1",
    ],
)
def test_settings_with_python_in_them(text: str, marker: Path, train: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text.format(code=code(marker)))
    with pytest.raises(ValueError, match="could not determine a constructor"):
        load_yaml(path.read_text())
    status, said = train("--config", path)
    assert status == 2
    assert "is not a YAML file" in said


@pytest.mark.parametrize("name", ["../secrets", "/etc/passwd", "families", "acme/recipe"])
def test_recipes_are_those_of_the_package(name: str) -> None:
    with pytest.raises(ValueError, match="There is no recipe"):
        load_recipe(name)


def test_a_payload_is_one(tmp_path: Path) -> None:
    run, (text,) = Payload(tmp_path / "ran").__reduce__()
    run(text)
    assert (tmp_path / "ran").exists()
