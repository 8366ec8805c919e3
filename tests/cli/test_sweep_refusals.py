"""``hf-distill sweep`` refuses what cannot work, before anything is trained."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Files
from sweep_runs import Program, config_of, metrics, outcome, sweep_options, trainings

from hf_distill.cli.sweep import build_parser
from hf_distill.files import in_use

pytestmark = pytest.mark.usefixtures("no_garbage_collection")


def test_another_sweep_does_not_go_on_in_its_folder(
    whole_sweep: Callable[[Program], Path], program: Program, files: Files, tmp_path: Path
) -> None:
    folder = whole_sweep(program)
    options = sweep_options(files, folder.parent)
    before = outcome(folder)
    other = Path(files.train).with_name("other.json")
    other.write_text(Path(files.train).read_text() + "\n")
    changes: dict[str, tuple[Any, str]] = {
        "search_space": (
            {"temperature": [1, 5]},
            "temperature was [1.0, 4.0] and is now [1.0, 5.0]",
        ),
        "max_steps": (5, "max_steps was 4 and is now 5"),
        "sampler": ("tpe", 'sampler was "grid" and is now "tpe"'),
        "seeds": ([1], "seeds was [42] and is now [1]"),
        "metric": ("exact_match", "metric was 'f1' and is now 'exact_match'"),
        "train_file": (str(other), "other.json"),
        "teacher_model": (files.models["student_alone"], 'is now ["student_alone"]'),
    }
    for name, (value, says) in changes.items():
        changed = config_of({**options, name: value}, tmp_path)
        result = program("sweep", "--config", changed)
        assert result.status == 2 and "holds another sweep" in result.stderr
        assert says in result.stderr, result.stderr
    assert outcome(folder) == before
    # What has no bearing on the trials may change.
    free = {**options, "logging_steps": 3, "save_steps": 4, "disable_tqdm": False}
    assert program("sweep", "--config", config_of(free, tmp_path)).status == 0
    Path(files.validation).touch()
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("hf_distill.cli.sweep_plan.content_hash", lambda source: "0" * 64)
        result = program("sweep", "--config", config_of(options, tmp_path))
    assert "contents.train_file train.json has changed" in result.stderr


def test_one_sweep_in_a_folder(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = trainings(monkeypatch)
    with in_use(tmp_path / "sweep" / ".sweep.lock", "this test"):
        result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 2 and "another sweep is at work" in result.stderr and begun == []


def test_an_earlier_sweep_is_replaced_if_asked(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options["search_space"] = {"temperature": [1, 2]}
    assert program("sweep", "--config", config_of(options, tmp_path)).status == 0
    cache = tmp_path / "sweep" / "teacher_outputs"
    before = {path: path.stat().st_mtime_ns for path in cache.glob("part*")}
    options["search_space"] = {"temperature": [3]}
    begun = trainings(monkeypatch)
    config = config_of(options, tmp_path)
    assert program("sweep", "--config", config, "--overwrite_output_dir").status == 0
    assert len(begun) == 1
    assert [t["parameters"] for t in outcome(tmp_path / "sweep")["trials"]] == [{"temperature": 3}]
    assert sorted(path.name for path in (tmp_path / "sweep").glob("trial-*")) == ["trial-0000"]
    assert before == {path: path.stat().st_mtime_ns for path in cache.glob("part*")} != {}


def test_a_student_of_an_earlier_sweep_is_not_deleted_by_what_is_made_of_it(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    made = tmp_path / "sweep" / "trial-0000"
    shutil.copytree(options["teacher_model"], made)
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    options["teacher_model"] = str(made)
    config = config_of(options, tmp_path)
    result = program("sweep", "--config", config, "--overwrite_output_dir")
    assert result.status == 2 and f"--teacher_model {made} is in --output_dir" in result.stderr
    assert (made / "model.safetensors").exists()


def test_a_folder_with_something_else_is_refused(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    for name in ("model.safetensors", "report.md"):
        (tmp_path / "sweep" / name).write_text("mine")
    for flags in ([], ["--overwrite_output_dir"]):
        result = program("sweep", "--config", config_of(options, tmp_path), *flags)
        assert result.status == 2 and "holds other files (model.safetensors" in result.stderr
    for name in ("model.safetensors", "report.md"):
        assert (tmp_path / "sweep" / name).read_text() == "mine"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"search_space": None}, "there is nothing to search"),
    ({"search_space": {"temprature": [1]}}, "no option 'temprature'. Did you mean temperature?"),
    ({"search_space": {"temperature": []}}, "temperature is an empty list"),
    ({"search_space": {"temperature": [2, 0]}}, "with temperature=0.0: temperature must be"),
    ({"search_space": {"temperature": {"low": 4, "high": 1}}}, "low 4.0 and high 1.0"),
    ({"search_space": {"temperature": {"low": -1, "high": 1}}, "sampler": "random"},
     "with temperature=-1.0: temperature must be"),
    ({"search_space": {"temperature": ["warm"]}}, "invalid float value: 'warm'"),
    ({"search_space": {"distillation_loss": ["kl_div", "k"]}}, "invalid choice: 'k'"),
    ({"search_space": {"distillation_loss": {"low": 1, "high": 2}}}, "invalid choice"),
    ({"search_space": {"output_dir": ["a", "b"]}}, "output_dir cannot be searched: each trial"),
    ({"search_space": {"task": ["fill-mask"]}}, "task cannot be searched"),
    ({"search_space": {"n_trials": [1]}}, "no option 'n_trials'"),
    ({"search_space": {"max_length": [32, 48]}}, "belong to one preparation of the data"),
    ({"search_space": {"doc_stride": [8]}}, "belong to one preparation of the data"),
    ({"search_space": {"max_train_samples": [8]}}, "belong to one preparation of the data"),
    ({"search_space": {"validation_file": ["a"]}}, "different data cannot be compared"),
    ({"search_space": {"teacher_model": ["a"]}}, "cached once"),
    ({"search_space": {"bf16": [True]}}, "one precision"),
    ({"search_space": {"seed": [1, 2]}, "seeds": [1]}, "--seeds are trained"),
    ({"search_space": {"push_to_hub": [True]}}, "not pushed"),
    ({"search_space": {"label_names": ["a"]}}, "takes a list"),
    ({"search_space": {"learning_rate": {"low": 1e-5, "high": 1e-3}}, "sampler": "grid"},
     "learning_rate is a range without a step"),
    ({"search_space": {"temperature_schedule": ["linear", "constant"]}},
     "needs temperature_end"),
    ({"teacher_model": None}, "--teacher_model is missing"),
    ({"validation_file": None}, "pass --validation_file"),
    ({"train_file": None}, "there is no training data"),
    ({"n_trials": 0}, "--n_trials 0 must be at least 1"),
    ({"seeds": [1, 1]}, "--seeds has 1 twice"),
    ({"seeds": [-1]}, "--seeds -1 must be 0 or more"),
    ({"resume_from_checkpoint": "last"}, "--resume_from_checkpoint"),
    ({"push_to_hub": True}, "pushes nothing"),
    ({"stage": "intermediate"}, "no score to search by"),
    ({"intermediate_epochs": 1}, "--intermediate_epochs 1.0 needs the teacher itself"),
    ({"search_space": {"attention_loss_weight": [0, 1]}}, "add --live_teacher"),
    ({"live_teacher": True, "teacher_outputs": "o"}, "leave --teacher_outputs out"),
    ({"sampler": "annealing"}, "invalid choice: 'annealing'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_mistakes_are_found_before_anything_is_trained(
    change: dict[str, Any],
    says: str,
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = trainings(monkeypatch)
    result = program("sweep", "--config", config_of({**options, **change}, tmp_path))
    assert result.status == 2
    assert says in result.stderr, result.stderr
    assert begun == []


def test_the_search_space_on_the_command_line(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    del options["search_space"]
    config = config_of({**options, "temperature": 9.0}, tmp_path)
    words = ("sweep", "--config", config, "--search_space")
    result = program(*words, "{temperature: [1")
    assert result.status == 2 and "--search_space cannot be read" in result.stderr
    result = program(*words, "{temperature: [3], layer_mapping: ['3:6']}")
    assert result.status == 0, result.stderr
    (trial,) = outcome(tmp_path / "sweep")["trials"]
    assert trial["parameters"] == {"temperature": 3.0, "layer_mapping": "3:6"}
    assert metrics(tmp_path / "sweep" / "trial-0000")["distillation"]["temperature"] == 3.0


def test_a_student_alone_can_be_searched_for(
    program: Program, options: dict[str, Any], tmp_path: Path
) -> None:
    options |= {"baseline": True, "search_space": {"learning_rate": [1e-3, 1e-2]}}
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 0, result.stderr
    assert not (tmp_path / "sweep" / "teacher_outputs").exists()
    assert metrics(tmp_path / "sweep" / "trial-0000")["teacher_model"] is None


@pytest.mark.parametrize("package", ["optuna", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(
    package: str,
    program: Program,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 2 and not (tmp_path / "sweep").exists()
    assert f'{package} is not installed: pip install "hf-distill[sweep]"' in result.stderr


def test_it_is_one_process(
    program: Program, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = program("sweep", "--config", config_of(options, tmp_path))
    assert result.status == 2 and "a sweep is one process" in result.stderr


def test_help_lists_the_search_first() -> None:
    text = build_parser().format_help()
    assert text.index("--search_space") < text.index("--student_model") < text.index("--max_steps")
    assert "sweep.png" in text
