"""Decisions about the training, as pure functions of measured seconds."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_distill.reports.report import Decision
from hf_distill.shrinking.commands import PlanCommands
from hf_distill.shrinking.decisions import decide
from hf_distill.shrinking.plan import (
    Asked,
    Data,
    Further,
    Measured,
    Plan,
    check_asked,
    read_budget,
)
from hf_distill.shrinking.shapes import Shape, Timed

QA = "question-answering"
TEACHER, SHAPE = Shape(6, 384, 1536, 12), Shape(6, 192, 768, 6)
BEST = Timed(SHAPE, 20.0, 50.0, 8_600_000, divergence=0.9)
SECONDS = Measured(hidden_states_step=1.5, prediction_step=1.0, teacher_batch=0.4, creation=30.0)
DATA = Data(train=1600, validation=320, metric="f1")


def values(task: str = QA, asked: Asked | None = None, data: Data = DATA, **measured: float) -> Any:
    decisions, seconds = decide(task, asked or Asked(), data, replace(SECONDS, **measured), BEST)
    return {one.name: one.value for one in decisions}, seconds


def test_epochs_are_shared() -> None:
    found, seconds = values(asked=Asked(num_train_epochs=4, hidden_states_share=0.5))
    assert (found["hidden_states_steps"], found["prediction_steps"]) == (200, 200)
    # The teacher's forward pass is paid once; the start, 200 // 50 evaluations and the last one.
    scored = 320 / 16 * 0.6 / 3
    assert seconds["teacher_outputs"] == pytest.approx(100 * 0.4)
    assert seconds["student"] == pytest.approx(200 * 1.5 + 200 * 0.6 + 6 * scored)
    assert seconds["comparison"] == pytest.approx((320 + 464) * 0.070)
    assert seconds["created"] == 30.0
    assert set(seconds) == {"created", "teacher_outputs", "student", "comparison"}


def test_rows_are_scored_with_padding() -> None:
    asked = Asked(num_train_epochs=4, hidden_states_share=0.5)
    (_, filled), (_, padded) = values(asked=asked), values(asked=asked, filled=0.25)
    scored = 320 / 16 * 0.6 / 3
    assert padded["student"] - filled["student"] == pytest.approx(6 * 3 * scored)
    assert padded["teacher_outputs"] == filled["teacher_outputs"]


def test_the_time_of_what_is_made_in_addition() -> None:
    _, plain = decide(QA, Asked(num_train_epochs=4), DATA, SECONDS, BEST)
    further = Further(baseline=True, exports=2)
    _, more = decide(QA, Asked(num_train_epochs=4), DATA, SECONDS, BEST, further)
    assert set(more) - set(plain) == {"student_alone", "onnx", "int8"}
    scored = 320 / 16 * 0.6 / 3
    assert more["student_alone"] == pytest.approx(400 * 0.6 + 10 * scored)
    assert more["onnx"] == more["int8"] == pytest.approx(6 + (2 * 320 + 432) * 0.020)
    assert more["comparison"] - plain["comparison"] == pytest.approx((320 + 464) * 0.060)
    # Exports are scored on 1,000 rows at most, and on none that are not in a file.
    for data, exports, rows in ((replace(DATA, validation=9999), 2, 1000), (DATA, 1, 0)):
        _, some = decide(QA, Asked(), data, SECONDS, BEST, Further(exports=exports))
        assert some["onnx"] == pytest.approx(6 + (2 * rows + 432) * 0.020)


def test_numbers_have_no_temperature(tmp_path: Path) -> None:
    numbers = replace(DATA, loss="mse", metric="pearson")
    found, _ = values("text-classification", data=numbers)
    assert found["distillation_loss"] == "mse" and "temperature" not in found
    with pytest.raises(ValueError, match=r"temperature=3\.0"):
        values("text-classification", Asked(temperature=3.0), numbers)
    decisions = {
        one.name: one
        for one in plan().decisions.values()
        if one.name != "temperature"
    } | {"distillation_loss": Decision("distillation_loss", "mse", "numbers")}  # fmt: skip
    made = listed(replace(plan(), decisions=decisions), tmp_path)
    train = next(one for one in made if one.folder == "student").options
    assert train["distillation_loss"] == "mse" and train["temperature"] is None


def test_a_share_by_hand() -> None:
    found, _ = values(asked=Asked(num_train_epochs=4, hidden_states_share=0.25))
    assert (found["hidden_states_steps"], found["prediction_steps"]) == (100, 300)
    for share in (0.0, None):  # the default; a step of another kind is not even timed
        asked = Asked(num_train_epochs=4, hidden_states_share=share)
        found, seconds = values(asked=asked, hidden_states_step=0.0)
        assert (found["hidden_states_steps"], found["prediction_steps"]) == (0, 400)
        assert seconds["student"] == pytest.approx(400 * 0.6 + 10 * 320 / 16 * 0.6 / 3)
    found, _ = values(asked=Asked(num_train_epochs=0.001))
    assert (found["hidden_states_steps"], found["prediction_steps"]) == (0, 1)


@pytest.mark.parametrize("budget", [600.0, 3600.0, 36000.0])
@pytest.mark.parametrize("cache", [None, False])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("further", [Further(), Further(baseline=True, exports=2)])
def test_a_budget_is_kept_and_used(
    budget: float, cache: bool | None, share: float, further: Further
) -> None:
    asked = Asked(budget=budget, cache=cache, hidden_states_share=share)
    decisions, seconds = decide(QA, asked, DATA, SECONDS, BEST, further)
    found = {one.name: one.value for one in decisions}
    scoring = 320 / 16 * 0.6 / 3
    # Ten scorings of each are planned for; with half of the steps on hidden states there are six.
    scored = (1 + further.baseline) * 4 * scoring
    assert 0.9 * budget - scored - 4 < sum(seconds.values()) <= 0.9 * budget
    others = sum(seconds.get(one, 0) for one in ("created", "onnx", "int8", "comparison"))
    if found.get("search"):
        assert found["search"] == {"temperature": [1.0, 4.0], "distillation_loss_weight": [0.5, 1]}
        assert found["search_steps"] == 600 and seconds["search"] <= 0.5 * (budget - others)
    alone = 0.6 * further.baseline
    trained = 0.9 * budget - others - 10 * scoring * (1 + further.baseline)
    spent = found["hidden_states_steps"] * (1.5 + alone)
    assert spent == pytest.approx(share * trained, abs=1.5 + alone)


ROOM = Asked(budget=36000.0)


@pytest.mark.parametrize(
    ("asked", "data", "space"),
    [
        (ROOM, DATA, {"temperature": [1.0, 4.0], "distillation_loss_weight": [0.5, 1.0]}),
        (replace(ROOM, temperature=2.0), DATA, {"distillation_loss_weight": [0.5, 1.0]}),
        (ROOM, replace(DATA, labelled=False), {"temperature": [1.0, 4.0]}),
        (ROOM, replace(DATA, loss="mse"), {"distillation_loss_weight": [0.5, 1.0]}),
    ],
)
def test_what_a_search_is_over(asked: Asked, data: Data, space: Any) -> None:
    found, seconds = values(asked=asked, data=data)
    assert found["search"] == space and found["search_steps"] == 600
    trainings = 2 ** len(space)
    # Eight scores on the way, the start and the end.
    expected = trainings * (600 * 0.6 + 10 * 320 / 16 * 0.6 / 3)
    assert seconds["search"] == pytest.approx(expected)


def test_where_there_is_nothing_to_search() -> None:
    for asked in (
        replace(ROOM, temperature=2.0, distillation_loss_weight=0.7),
        replace(ROOM, cache=False),
        Asked(num_train_epochs=600),
    ):
        found, seconds = values(asked=asked)
        assert "search" not in found and "search" not in seconds
    found, _ = values(asked=ROOM, data=replace(DATA, validation=0, metric=None))
    assert "search" not in found


def test_why_a_budget_is_not_searched() -> None:
    def why(asked: Asked, **further: Any) -> str:
        decisions, seconds = decide(QA, asked, DATA, SECONDS, BEST, Further(**further))
        (search,) = [one for one in decisions if one.name == "search"]
        assert search.value is None and "search" not in seconds
        return search.reason

    scorings = 10 * 320 / 16 * 0.6 / 3
    _, seconds = decide(QA, ROOM, DATA, SECONDS, BEST)
    others = seconds["created"] + seconds["teacher_outputs"] + seconds["comparison"]
    fits = (2 * 4 * (600 * 0.6 + scorings) + others + scorings) / 0.9
    assert values(asked=Asked(budget=fits + 1))[0]["search"]
    assert "50% of the time for training" in why(Asked(budget=fits - 1))
    assert "hf-distill[sweep]" in why(ROOM, can_search=False)
    assert "hidden states" in why(replace(ROOM, hidden_states_share=0.1))


def sweep(best: int, noise: list[int]) -> dict[str, Any]:
    combinations = [(1.0, 0.5), (1.0, 1.0), (4.0, 0.5), (4.0, 1.0)]
    return {
        "metric": "f1",
        "best": best,
        "within_noise_of_best": noise,
        "trials": [
            {"number": n, "parameters": {"temperature": t, "distillation_loss_weight": w},
             "value": 70.0 + n}
            for n, (t, w) in enumerate(combinations)
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (sweep(0, [1]), (1.0, 0.5)),
        (sweep(0, [1, 3]), (4.0, 1.0)),  # no better than the defaults, as far as one can tell
        (sweep(3, [0, 1, 2]), (4.0, 1.0)),
    ],
)
def test_the_training_has_what_the_search_found(content: Any, found: Any, tmp_path: Any) -> None:
    decisions, _ = decide(QA, ROOM, DATA, SECONDS, BEST)
    searching = plan(**{one.name: one for one in decisions})
    before = {one.folder: one for one in listed(searching, tmp_path, baseline=True)}
    assert list(before)[:5] == ["created", "teacher_outputs", "search", "student", "student_alone"]
    search = before["search"].options
    space = yaml.safe_load(search["search_space"])
    assert space == searching["search"]
    assert not {"temperature", "distillation_loss_weight", "resume"} & search.keys()
    assert (search["max_steps"], search["save_steps"], search["eval_steps"]) == (600, 75, 75)
    assert search["metric"] == "f1" and before["search"].resumes
    done = searching.with_found(content)
    assert done.with_found(content) == done or found == (4.0, 1.0)
    options = {one.folder: one.options for one in listed(done, tmp_path)}["student"]
    assert (options["temperature"], options["distillation_loss_weight"]) == found
    assert options["max_steps"] == searching["prediction_steps"] > 600
    assert Plan.from_json(json.loads(json.dumps(done.to_json()))) == done


def test_a_search_in_which_all_trainings_failed_leaves_the_defaults() -> None:
    decisions, _ = decide(QA, ROOM, DATA, SECONDS, BEST)
    searching = plan(**{one.name: one for one in decisions})
    content = sweep(0, [])
    content["best"] = None
    for trial in content["trials"]:
        trial |= {"value": None, "failure": "the student diverged"}
    done = searching.with_found(content)
    for name in ("temperature", "distillation_loss_weight"):
        assert done[name] == searching[name]
        assert "the student diverged" in done.decisions[name].reason


def test_a_budget_for_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        values(asked=Asked(budget=1.0))


def test_outputs_are_stored_where_the_teacher_would_run_again() -> None:
    assert values(asked=Asked(num_train_epochs=2))[0]["cache_teacher_outputs"] is True
    assert values(asked=Asked(num_train_epochs=1))[0]["cache_teacher_outputs"] is False
    once = Asked(num_train_epochs=1, cache=True)
    assert values(asked=once)[0]["cache_teacher_outputs"] is True
    for task in ("fill-mask", "text-generation", "summarization"):
        assert values(task, Asked(num_train_epochs=9))[0]["cache_teacher_outputs"] is False


def test_without_labels_the_teacher_is_all() -> None:
    unlabelled = replace(DATA, labelled=False)
    assert values("text-generation")[0]["distillation_loss_weight"] == 0.5
    assert values("token-classification", data=unlabelled)[0]["distillation_loss_weight"] == 1.0
    with pytest.raises(ValueError, match="distillation_loss_weight=0.7"):
        values(asked=Asked(distillation_loss_weight=0.7), data=unlabelled)


def test_options_by_hand_say_so() -> None:
    asked = Asked(
        learning_rate=1e-5, temperature=7.0, dropout=0.2, batch_size=8, distillation_loss_weight=0.5
    )
    decisions, _ = decide(QA, asked, DATA, SECONDS, BEST)
    by_name = {one.name: one for one in decisions}
    for name, value in (
        ("learning_rate", 1e-5),
        ("temperature", 7.0),
        ("dropout", 0.2),
        ("per_device_train_batch_size", 8),
        ("distillation_loss_weight", 0.5),
    ):
        assert by_name[name].value == value and by_name[name].reason == f"set by --{name}"
    assert by_name["prediction_steps"].value == 6 * 200
    assert all(one.reason for one in decisions)


def test_without_validation_data_nothing_is_scored() -> None:
    found, seconds = values(data=replace(DATA, validation=0, metric=None))
    assert "early_stopping_patience" not in found and "comparison" not in seconds
    assert found["save_steps"] == 75
    assert values()[0]["early_stopping_patience"] == 6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("45s", 45), ("1h 30m", 5400), ("1.5h", 5400), ("10min", 600)],
)
def test_budgets(text: str, seconds: float) -> None:
    assert read_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "two hours", "-1h", "0s", "1.2.3h", "h"])
def test_what_is_not_a_budget(text: str) -> None:
    with pytest.raises(ValueError, match="budget="):
        read_budget(text)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (Asked(budget=9.0, num_train_epochs=1.0), "num_train_epochs"),
        (Asked(num_train_epochs=0.0), "num_train_epochs=0.0"),
        (Asked(learning_rate=float("nan")), "learning_rate=nan"),
        (Asked(temperature=-1.0), "temperature=-1.0"),
        (Asked(temperature=float("inf")), "temperature=inf must be a finite number above 0"),
        (Asked(distillation_loss_weight=0.0), "distillation_loss_weight=0.0"),
        (Asked(hidden_states_share=1.0), "hidden_states_share=1.0"),
        (Asked(dropout=1.0), "dropout=1.0"),
        (Asked(batch_size=0), "per_device_train_batch_size=0"),
    ],
)
def test_values_out_of_range(asked: Asked, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_asked(asked)


def plan(**changes: Any) -> Plan:
    asked = Asked(num_train_epochs=4, hidden_states_share=0.5)
    decisions, seconds = decide(QA, asked, DATA, SECONDS, BEST)
    more = [
        Decision("bf16", False, "by a timed product of matrices"),
        Decision("metric", "f1", "the first"),
        Decision("better", "higher", "a property"),
    ]
    by_name = {one.name: one for one in (*decisions, *more)} | changes
    return Plan(QA, TEACHER, SHAPE, 2.5, by_name, [BEST], seconds)


def test_a_plan_is_the_same_after_it_was_written() -> None:
    written = json.loads(json.dumps(plan().to_json()))
    assert Plan.from_json(written) == plan()
    del written["shape"]["hidden_size"]
    with pytest.raises(ValueError, match="hidden_size"):
        Plan.from_json(written)


def listed(plan: Plan, tmp_path: Any, **options: Any) -> list[Any]:
    return PlanCommands(
        plan,
        tmp_path / "small",
        teacher=str(tmp_path / "secret" / "big"),
        train={"train_file": str(tmp_path / "secret" / "train.json"), "max_train_samples": 9},
        validation={"validation_file": str(tmp_path / "secret" / "dev.json")},
        task={"task": QA, "max_length": 48},
        seed=3,
        use_cpu=True,
        **options,
    ).in_order()


def test_commands_name_nothing_of_the_machine(tmp_path: Any) -> None:
    made = listed(plan(), tmp_path, baseline=True)
    assert [one.folder for one in made] == [
        "created", "teacher_outputs", "student", "student_alone", "onnx", "int8", "comparison"
    ]  # fmt: skip
    shown = [one.shown(tmp_path / "small") for one in made]
    for one in shown:
        assert str(tmp_path) not in one and "secret" not in one
    creation, cache, train, alone, *_, compare = shown
    assert (
        "--hidden_size 192" in creation
        and "--dropout 0.0" in creation
        and "--calibration_file train.json" in creation
    )
    assert "--teacher_model big" in cache and "--max_train_samples 9" in cache
    assert "--teacher_outputs small/teacher_outputs" in train
    assert "--intermediate_max_steps 200" in train
    assert "--max_steps 400" in alone and "--baseline" in alone
    assert "--file dev.json" in compare
    assert made[-2].options["max_eval_samples"] == 1000


def test_relative_paths_stay_whether_they_exist_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "it's.json").touch()
    folder = Path("runs/small one")
    (folder / "student").mkdir(parents=True)
    made = PlanCommands(
        plan(), folder, teacher="owner/big", train={"train_file": "my data/it's.json"},
        validation=None, task={"task": QA}, seed=3, use_cpu=True,
    ).in_order()  # fmt: skip
    train = shlex.split(next(one for one in made if one.folder == "student").shown(folder))
    named = {option: train[train.index(option) + 1] for option in train if option[:2] == "--"
             and option != "--use_cpu" and option != "--resume"}  # fmt: skip
    assert named["--train_file"] == "my data/it's.json"
    assert named["--student_model"] == "runs/small one/created"
    assert named["--output_dir"] == "runs/small one/student"
    assert named["--teacher_model"] == "owner/big"


def test_one_stage_from_stored_outputs_does_not_load_the_teacher(tmp_path: Any) -> None:
    one_stage = plan(hidden_states_steps=Decision("hidden_states_steps", 0, "by hand"))
    train = next(one for one in listed(one_stage, tmp_path) if one.folder == "student")
    assert train.options["teacher_model"] is None and train.options["teacher_outputs"]
    assert train.options["intermediate_max_steps"] is None


def test_augmented_data_is_trained_on_and_not_created_from(tmp_path: Any) -> None:
    made = {one.folder: one for one in listed(plan(), tmp_path, augment=4, augment_model="mlm")}
    augment, file = made["augmented"], str(tmp_path / "small" / "augmented" / "train.json")
    assert augment.options["multiplication_factor"] == 4 and augment.result == "train.json"
    assert augment.options["squad_path"].endswith("secret/train.json")
    assert made["student"].options["train_file"] == file
    assert made["teacher_outputs"].options["train_file"] == file
    assert made["created"].options["calibration_file"] == augment.options["squad_path"]
    # Not into the file that is augmented.
    shown = augment.shown(tmp_path / "small")
    assert "--squad_path train.json" in shown and "--model mlm" in shown
    assert "--output_path small/augmented/train.json" in shown


def test_a_hub_data_set_without_validation_is_not_scored(tmp_path: Any) -> None:
    train = {"dataset_name": "squad", "train_split": "train[:9]"}
    made = PlanCommands(
        plan(), tmp_path, teacher="big", train=train, validation=None, task={"task": QA},
        seed=3, use_cpu=True,
    ).in_order()  # fmt: skip
    by_folder = {one.folder: one for one in made}
    assert list(by_folder) == ["created", "teacher_outputs", "student", "onnx"]
    assert by_folder["student"].options["validation_split"] == "none"
    assert by_folder["created"].options["split"] == "train[:9]"
    assert by_folder["onnx"].options["file"] is None


def test_both_trainings_have_batches_of_one_length_and_keep_a_better_start(tmp_path: Any) -> None:
    made = {one.folder: one.options for one in listed(plan(), tmp_path, baseline=True)}
    for name in ("student", "student_alone"):
        assert made[name]["train_sampling_strategy"] == "group_by_length"
        assert made[name]["eval_on_start"] and made[name]["load_best_model_at_end"]


def test_exports_and_comparison_are_of_the_same_split(tmp_path: Path) -> None:
    made = PlanCommands(
        plan(), tmp_path, teacher="big", train={"train_file": "data"},
        validation={"validation_file": "data", "validation_split": "dev"}, task={"task": QA},
        seed=3, use_cpu=True,
    ).in_order()  # fmt: skip
    splits = {one.folder: one.options.get("split") for one in made}
    assert splits["onnx"] == splits["int8"] == splits["comparison"] == "dev"


def test_live_teacher(tmp_path: Any) -> None:
    live = plan(cache_teacher_outputs=Decision("cache_teacher_outputs", False, "by hand"))
    made = {one.folder: one for one in listed(live, tmp_path, exports=False)}
    assert list(made) == ["created", "student", "comparison"]
    assert made["student"].options["teacher_outputs"] is None
