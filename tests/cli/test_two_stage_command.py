"""``hf-distill train --intermediate_…``: two stages in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from cli_runs import FACTS, squad
from task_runs import save_model, write_data
from two_stage_runs import checkpoints, metrics, one_stage, same, state, weights

ROOT = Path(__file__).parents[2]


# ---- a whole run -----------------------------------------------------------------------------


def test_both_stages_run_apart(two_stages: list[str], whole: Any, program: Any) -> None:
    out = whole(program, two_stages)
    first = out / "intermediate"
    assert checkpoints(out) == checkpoints(first) == ["checkpoint-2", "checkpoint-4"]
    logs = {folder: state(folder)["log_history"] for folder in (first, out)}
    assert all("loss_hidden_states" in e and "loss_attention" in e for e in logs[first][:4])
    assert not any("loss_prediction" in entry or "loss_task" in entry for entry in logs[first])
    assert all("loss_prediction" in entry and "loss_task" in entry for entry in logs[out][:4])
    assert not any("loss_attention" in entry for entry in logs[out])
    assert logs[first][0]["learning_rate"] == pytest.approx(3e-3)
    assert logs[out][0]["learning_rate"] == pytest.approx(1e-3)

    content = metrics(out)
    assert content["student_model"] == Path(two_stages[-1]).name
    assert (content["steps"], content["eval"].keys() >= {"f1", "loss_prediction"}) == (4, True)
    assert content["distillation"]["stage"] == "prediction"
    assert "layer_pairs" not in content
    stage = content["intermediate_stage"]
    assert stage["distillation"]["stage"] == "intermediate"
    assert stage["layer_pairs"] == [[0, 0], [1, 2]]
    assert (stage["steps"], stage["train_data"]) == (4, "train.json")
    assert stage["train"]["loss"] > 0
    assert stage["student_model"] == content["student_model"]


def test_the_second_stage_begins_where_the_first_ends(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    """With a learning rate of 0 the second stage shows what it began with."""
    still = [*two_stages, "--learning_rate", "0"]
    assert program(*still).status == 0
    out = tmp_path / "out"
    assert same(weights(out), weights(out / "intermediate"))
    assert same(weights(out), weights(whole(program, two_stages) / "intermediate"))
    assert program(*one_stage(still), "--output_dir", tmp_path / "one").status == 0
    begin, after = weights(tmp_path / "one"), weights(out)
    changed = {name for name in begin if not torch.equal(begin[name], after[name])}
    # The head of the encoder is new, so it is drawn: as it would be without a first stage.
    assert not any(name.startswith("qa_outputs") for name in changed)
    assert "bert.encoder.layer.0.output.dense.weight" in changed


def test_two_commands_come_to_the_same(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    alone = one_stage(two_stages)
    first = [*alone, "--output_dir", tmp_path / "first", "--learning_rate", "3e-3"]
    result = program(*first, "--stage", "intermediate")
    assert result.status == 0, result.stderr
    begin = weights(tmp_path / "first")
    assert same(begin, weights(whole(program, two_stages) / "intermediate"))
    second = [*alone, "--student_model", tmp_path / "first"]
    assert program(*second).status == 0
    assert same(weights(tmp_path / "out"), weights(whole(program, two_stages)))


# ---- options ---------------------------------------------------------------------------------


def test_a_baseline_has_one_stage_and_says_so(
    two_stages: list[str], program: Any, tmp_path: Path
) -> None:
    result = program(*two_stages, "--baseline", "--attention_loss_weight", "1")
    assert result.status == 0, result.stderr
    assert "the intermediate stage" in result.stderr and "is left out" in result.stderr
    out = tmp_path / "out"
    assert not (out / "intermediate").exists()
    assert metrics(out)["intermediate_stage"] is None
    alone = one_stage(two_stages)
    assert program(*alone, "--baseline", "--output_dir", tmp_path / "alone").status == 0
    assert same(weights(out), weights(tmp_path / "alone"))


def test_a_first_stage_with_data_of_its_own(
    two_stages: list[str], whole: Any, program: Any, tmp_path: Path
) -> None:
    unanswered = squad(FACTS[:2])
    for paragraph in unanswered["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            del question["answers"]
    (tmp_path / "more.json").write_text(json.dumps(unanswered))
    weighted = [*two_stages, "--hidden_states_loss_weight", "2", "--attention_loss_weight", "1"]
    result = program(*weighted, "--intermediate_train_file", tmp_path / "more.json")
    assert result.status == 0, result.stderr
    out = tmp_path / "out"
    content = metrics(out)
    assert content["train_data"] == "train.json"
    assert content["intermediate_stage"]["train_data"] == "more.json"
    assert state(out / "intermediate")["epoch"] == 4.0  # 4 rows, a batch of 8
    first = weights(whole(program, two_stages) / "intermediate")
    assert not same(weights(out / "intermediate"), first)
    # The weights are those of the first stage.
    assert not any("loss_hidden_states" in entry for entry in state(out)["log_history"])
    entry = state(out / "intermediate")["log_history"][0]
    assert entry["loss"] == pytest.approx(2 * entry["loss_hidden_states"] + entry["loss_attention"])


def test_options_from_a_file_and_epochs(
    two_stages: list[str], program: Any, tmp_path: Path
) -> None:
    alone = one_stage(two_stages)
    (tmp_path / "run.yaml").write_text(
        "intermediate_epochs: 2\nlayer_mapping: 1:1\nattention_loss_weight: 0\n"
        "save_strategy: best\neval_strategy: epoch\nload_best_model_at_end: true\n"
        "metric_for_best_model: f1\n"
    )
    result = program(*alone, "--config", tmp_path / "run.yaml", "--save_only_model", "false")
    assert result.status == 0, result.stderr
    out = tmp_path / "out"
    stage = metrics(out)["intermediate_stage"]
    assert stage["layer_pairs"] == [[1, 1]]
    assert stage["train"]["epoch"] == 2.0
    assert not any(
        "loss_attention" in entry for entry in state(out / "intermediate")["log_history"]
    )
    assert len(checkpoints(out / "intermediate")) == 2


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--stage", "intermediate"], ["--stage intermediate", "--num_train_epochs"]),
        (["--intermediate_max_steps", "0"], ["--intermediate_max_steps 0", "above 0"]),
        (["--intermediate_epochs", "nan"], ["--intermediate_epochs nan", "above 0"]),
        (["--intermediate_epochs", "inf"], ["--intermediate_epochs inf", "finite"]),
        (["--intermediate_learning_rate", "-1"], ["--intermediate_learning_rate -1"]),
        (["--intermediate_train_file", "none.json"], ["--intermediate_train_file none.json"]),
        (["--attention_loss_weight", "0", "--hidden_states_loss_weight", "0"],
         ["nothing to learn"]),
        (["--layer_mapping", "1:9"], ["layer_mapping", "9"]),
        (["--validation_file", "BROKEN"], ["broken.json"]),
        (["--record_steps", "0"], ["--record_steps 0"]),
        (["--teacher_model", "HEADLESS"], ["teacher_model", "not fine-tuned"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_the_first_stage(
    options: list[str], fragments: list[str], two_stages: list[str], encoder: str, program: Any,
    tmp_path: Path, monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr("transformers.Trainer.train", lambda *a, **k: pytest.fail("it trains"))
    (tmp_path / "broken.json").write_text("{")
    named = {"BROKEN": str(tmp_path / "broken.json"), "HEADLESS": encoder}
    result = program(*two_stages, *(named.get(word, word) for word in options))
    assert result.status == 2, result.stderr
    for fragment in fragments:
        assert fragment in result.stderr
    # What failed has left no run behind that the next try would have to replace.
    result = program(*two_stages, "--layer_mapping", "8:8")
    assert "--overwrite_output_dir" not in result.stderr


def test_the_teacher_is_tried_before_the_first_stage(
    two_stages: list[str], program: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def refuse(*args: Any) -> None:
        raise ValueError("worse than the most frequent label")

    monkeypatch.setattr("hf_distill.distiller.check_teacher", refuse)
    monkeypatch.setattr("transformers.Trainer.train", lambda *a, **k: pytest.fail("it trains"))
    result = program(*two_stages)
    assert result.status != 0 and "most frequent label" in result.stderr
    assert not (tmp_path / "out" / "intermediate").exists()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--intermediate_train_file", "TRAIN"], ["--intermediate_epochs"]),
        (["--intermediate_learning_rate", "1"], ["--intermediate_epochs"]),
        (["--stage", "intermediate", "--baseline"], ["--baseline", "--stage intermediate"]),
        (["--intermediate_epochs", "1", "--deepspeed", "{}"], ["one by one"]),
    ],
)
def test_what_does_not_go_together(
    options: list[str], fragments: list[str], train_options: list[str], program: Any
) -> None:
    result = program(*train_options, *options)
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def test_a_teacher_is_needed_for_the_first_stage_alone(
    two_stages: list[str], program: Any, tmp_path: Path
) -> None:
    place = two_stages.index("--teacher_model")
    without = [*two_stages[:place], *two_stages[place + 2 :]]
    result = program(*without, "--distillation_loss_weight", "0")
    assert result.status == 2 and "--teacher_model is missing" in result.stderr
    result = program(*two_stages, "--distillation_loss_weight", "0")
    assert result.status == 0, result.stderr
    assert "loss_prediction" not in metrics(tmp_path / "out")["eval"]


# ---- processes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_both_stages(
    two_stages: list[str], program: Any, tmp_path: Path
) -> None:
    # Not Adam, which makes steps of full size out of rounding noise; and a student without dropout.
    options = [*two_stages, "--optim", "sgd", "--distillation_loss_weight", "1.0"]
    options += ["--train_sampling_strategy", "sequential", "--record_steps", "2"]
    options += ["--student_model", two_stages[two_stages.index("--student_model") + 1]]
    both = [*options, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")]
    done = forked.run("hf_distill", *both, processes=2)
    assert (tmp_path / "two" / "metrics.json").is_file(), done.stderr
    assert done.stderr.count("Stage 1 of 2") == done.stderr.count("Stage 2 of 2") == 1
    assert program(*options, "--per_device_train_batch_size", "4").status == 0
    for stage in ("intermediate", "."):
        one, two = (weights(tmp_path / run / stage) for run in ("out", "two"))
        assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
        names = [[p.name for p in sorted((tmp_path / run / stage / "samples").iterdir())]
                 for run in ("out", "two")]  # fmt: skip
        assert names[0] == names[1] == ["step-00000000.safetensors", "step-00000002.safetensors"]


def test_two_stages_of_a_model_that_writes(program: Any, tmp_path: Path) -> None:
    """Its encoder and its decoder have layers of their own, and it needs its targets."""
    task = "summarization"
    data = write_data(tmp_path, task)
    teacher, student = (
        save_model(tmp_path / name, task, seed=seed, layers=layers)
        for name, seed, layers in (("teacher", 1, 2), ("student", 0, 1))
    )
    out = tmp_path / "out"
    result = program(
        "train", "--task", task, "--teacher_model", teacher, "--student_model", student,
        "--train_file", data, "--validation_file", data, "--output_dir", out, "--use_cpu",
        "--max_target_length", "12", "--max_steps", "1", "--intermediate_max_steps", "2",
        "--attention_loss", "scores", "--layer_mapping", "encoder=auto;decoder=1:2",
        "--logging_steps", "1",
    )  # fmt: skip
    assert result.status == 0, result.stderr
    assert "Similarity of the layers of the encoder" in result.stderr
    assert (out / "intermediate" / "pictures" / "encoder_layer_similarity.png").exists()
    pairs = metrics(out)["intermediate_stage"]["layer_pairs"]
    assert pairs["decoder"] == [[1, 2]] and pairs["encoder"][0] == [0, 0]
    assert any("loss_attention" in e for e in state(out / "intermediate")["log_history"])
