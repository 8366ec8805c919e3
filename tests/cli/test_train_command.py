from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from cli_runs import (
    Files,
    Result,
    assert_says_nothing_about_the_machine,
    gold_answers,
    overlap,
    squad,
    words,
)
from safetensors.torch import load_file
from tiny import model_for, tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from hf_distill import DistillationTrainer
from hf_distill.cli import training_run
from hf_distill.files import in_use

ROOT = Path(__file__).parents[2]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_distillation_from_start_to_end(
    files: Files, train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    out = tmp_path / "out"
    result = program(*train_options, "--temperature", "5", "--distillation_loss_weight", "1.0")
    assert result.status == 0, result.stderr
    student, info = AutoModelForQuestionAnswering.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert student.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tokenizer().get_vocab()
    assert not same_weights(out, Path(files.models["student_alone"]))

    content = metrics(out)
    assert content["student_model"] == "student_alone"
    assert content["teacher_model"] == "teacher"
    assert content["train_data"] == "train.json"
    assert content["steps"] == 4
    assert content["distillation"]["temperature"] == 5.0
    predictions = json.loads((out / "predictions.json").read_text())
    gold = gold_answers(files.validation)
    assert predictions.keys() == gold.keys()
    scores = content["eval"]
    f1 = [max(overlap(predictions[name], text) for text in gold[name]) for name in gold]
    exact = [any(words(predictions[name]) == words(t) for t in gold[name]) for name in gold]
    assert scores["f1"] == pytest.approx(100 * sum(f1) / len(f1))
    assert scores["exact_match"] == pytest.approx(100 * sum(exact) / len(exact))
    assert 0 < scores["loss_prediction"] != scores["loss"] > 0
    n_best = json.loads((out / "nbest_predictions.json").read_text())
    assert [n_best[name]["answers"][0]["text"] for name in gold] == list(predictions.values())
    assert f"{scores['f1']:.2f}" in result.stdout
    assert_says_nothing_about_the_machine(out, str(tmp_path), str(files.folder), str(ROOT))


def test_baseline_is_the_same_run_without_a_teacher(
    train_options: list[str],
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the teacher is loaded")

    weight_zero = [*train_options, "--output_dir", str(tmp_path / "zero")]
    assert program(*weight_zero, "--distillation_loss_weight", "0").status == 0
    monkeypatch.setattr("hf_distill.teachers.create.load_teacher", refuse)
    schedule = ("--distillation_loss_weight_schedule", "linear",
                "--distillation_loss_weight_end", "1")  # fmt: skip
    result = program(*train_options, "--baseline", *schedule, "--teacher_model", "/nowhere")
    assert result.status == 0, result.stderr
    assert same_weights(tmp_path / "out", tmp_path / "zero")
    content = metrics(tmp_path / "out")
    assert content["teacher_model"] is None
    assert content["distillation"]["distillation_loss_weight"] == 0
    assert "loss_prediction" not in content["eval"]


def test_new_head_begins_the_same_with_and_without_teacher(
    train_options: list[str], files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    encoder = tmp_path / "encoder"
    model_for("question-answering", seed=5, layers=1).bert.save_pretrained(encoder)
    tokenizer().save_pretrained(encoder)
    still = [*train_options, "--student_model", str(encoder), "--learning_rate", "0"]
    result = program(*still)
    assert result.status == 0, result.stderr
    assert "trained from scratch: qa_outputs" in result.stderr
    assert "MISSING" not in result.stderr
    assert program(*still, "--baseline", "--output_dir", str(tmp_path / "alone")).status == 0
    assert same_weights(tmp_path / "out", tmp_path / "alone")
    other = ["--seed", "7", "--output_dir", str(tmp_path / "other")]
    assert program(*still, *other).status == 0
    assert not same_weights(tmp_path / "out", tmp_path / "other")


def test_config_file_drives_a_run(
    files: Files, train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    pairs = zip(train_options[1:13:2], train_options[2:13:2], strict=True)
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in pairs]
    lines += ["max_steps: 3", "use_cpu: true", "temperature: 7", "save_strategy: no"]
    lines += ["max_length: 48", "doc_stride: 8", "disable_tqdm: true"]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    result = program("train", "--config", tmp_path / "run.yaml", "--max_steps", "2")
    assert result.status == 0, result.stderr
    assert metrics(tmp_path / "out")["steps"] == 2
    assert metrics(tmp_path / "out")["distillation"]["temperature"] == 7.0
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("checkpoint", ["last", "true", "PATH"])
def test_resumed_run_ends_like_an_unbroken_one(
    checkpoint: str, train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    assert program(*train_options).status == 0
    broken = [*train_options, "--output_dir", str(tmp_path / "broken")]
    assert program(*broken).status == 0
    for path in (tmp_path / "broken" / "checkpoint-4").iterdir():
        path.unlink()
    (tmp_path / "broken" / "checkpoint-4").rmdir()
    (tmp_path / "broken" / "model.safetensors").unlink()
    source = str(tmp_path / "broken" / "checkpoint-2") if checkpoint == "PATH" else checkpoint
    result = program(*broken, "--resume_from_checkpoint", source)
    assert result.status == 0, result.stderr
    assert same_weights(tmp_path / "out", tmp_path / "broken")
    logged = re.findall(r"Training: step (\d) of 4: loss [\d.]+\n", result.stderr)
    assert logged == ["3", "4"]


def test_earlier_run_is_not_overwritten_unasked(
    train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    out = tmp_path / "out"
    assert program(*train_options).status == 0
    before = (out / "model.safetensors").read_bytes()
    result = program(*train_options, "--seed", "1")
    assert result.status == 2
    for remedy in ("--resume", "--overwrite_output_dir", "checkpoint-2"):
        assert remedy in result.stderr
    assert (out / "model.safetensors").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    again = [*train_options, "--overwrite_output_dir", "--max_steps", "1", "--save_steps", "1"]
    assert program(*again).status == 0
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1"]
    assert (out / "model.safetensors").read_bytes() != before
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite_output_dir"]])
def test_one_training_in_a_folder(
    flag: list[str], train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    out = tmp_path / "out"
    with in_use(out / ".train.lock", "this test"):
        result = program(*train_options, *flag)
    assert result.status == 2
    assert f"--output_dir {out}: another training is at work" in result.stderr
    assert [path.name for path in out.iterdir()] == [".train.lock"]
    assert program(*train_options, *flag).status == 0
    assert program(*train_options, "--overwrite_output_dir").status == 0  # let go at the end


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max_steps", "0"], "--max_steps 0 trains nothing"),
        (["--max_steps", "-1", "--num_train_epochs", "0"], "--num_train_epochs 0.0 trains"),
        (
            ["--dataloader_drop_last", "--per_device_train_batch_size", "64"],
            "all of the training data: it has 12 rows, and a batch of all processes 64",
        ),
    ],
)
def test_a_training_without_a_step_is_refused(
    words: list[str],
    named: str,
    train_options: list[str],
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    assert program(*train_options).status == 0
    result = program(*train_options, "--overwrite_output_dir", *words)
    assert result.status == 2 and named in result.stderr, result.stderr
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


def test_a_metric_that_there_is_not_is_named_with_those_that_there_are(
    train_options: list[str], program: Callable[..., Result]
) -> None:
    options = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end"]
    result = program(*train_options, *options, "--metric_for_best_model", "nothing")
    assert result.status == 2
    assert "metric_for_best_model='nothing'" in result.stderr, result.stderr
    assert "exact_match, f1" in result.stderr and "unexpected" not in result.stderr


@pytest.mark.parametrize("name", ["shrink.json", "comparison.json", "sweep.json"])
@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite_output_dir"]])
def test_results_of_another_command_are_never_replaced(
    flag: list[str], name: str, train_options: list[str], tmp_path: Path, program: Callable
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for file in (name, "report.html"):
        (out / file).write_text("mine")
    result = program(*train_options, *flag)
    assert result.status == 2
    assert "holds the results of `hf-distill " in result.stderr and name in result.stderr
    assert [path.read_text() for path in out.iterdir()] == ["mine", "mine"]


def test_files_that_are_of_no_run_are_replaced_only_if_asked(
    train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    out = tmp_path / "out"
    for of_a_beginning in ("runs", "pictures"):
        (out / of_a_beginning).mkdir(parents=True)
    (out / "train.log").write_text("")
    (out / "notes.txt").write_text("mine")
    for flag in ([], ["--resume"]):
        result = program(*train_options, *flag)
        assert result.status == 2 and "holds other files (notes.txt) and no" in result.stderr
    assert program(*train_options, "--overwrite_output_dir").status == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["teacher_model", "student_model"])
@pytest.mark.parametrize("place", ["out", "out/checkpoint-1", "out/intermediate"])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_model_is_not_overwritten_by_what_is_made_of_it(
    option: str,
    place: str,
    is_link: bool,
    train_options: list[str],
    files: Files,
    tmp_path: Path,
    program: Callable[..., Result],
) -> None:
    model = tmp_path / place
    model.parent.mkdir(exist_ok=True)
    if is_link:
        model.symlink_to(files.models["teacher"])
    else:
        shutil.copytree(files.models["teacher"], model)
    before = (model / "model.safetensors").read_bytes()
    result = program(*train_options, f"--{option}", model, "--overwrite_output_dir")
    assert result.status == 2
    assert f"--{option} {model} is in --output_dir {tmp_path / 'out'}" in result.stderr
    assert (model / "model.safetensors").read_bytes() == before


def test_a_checkpoint_that_is_a_link_is_only_unlinked(
    train_options: list[str], files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    out, target = tmp_path / "out", Path(files.models["teacher"])
    out.mkdir()
    (out / "checkpoint-1").symlink_to(target)
    result = program(*train_options, "--overwrite_output_dir", "--teacher_model", target)
    assert result.status == 0, result.stderr
    assert not (out / "checkpoint-1").exists() and (target / "config.json").is_file()


def test_failed_overwrite_deletes_nothing(
    train_options: list[str], files: Files, tmp_path: Path, program: Callable[..., Result]
) -> None:
    assert program(*train_options).status == 0
    result = program(*train_options, "--overwrite_output_dir", "--max_length", "500")
    assert result.status == 2
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--student_model", "./nowhere"], ["--student_model ./nowhere", "no such folder"]),
        (["--student_model", "owner/none"], ["--student_model owner/none", "Hub"]),
        (["--teacher_model", "owner/none"], ["teacher_model='owner/none'", "Hub"]),
        (["--teacher_model", "/no/where"], ["--teacher_model /no/where", "no such folder"]),
        (["--teacher_model", "FOLDER"], ["--teacher_model", "no config.json"]),
        (["--student_model", "FILE"], ["--student_model", "is a file"]),
        (["--student_model", "NO_TOKENIZER"], ["--student_model", "has no tokenizer"]),
        (["--teacher_model", "ENCODER"], ["teacher_model", "not fine-tuned", "qa_outputs"]),
        (["--train_file", "nowhere.json"], ["--train_file nowhere.json", "no such file"]),
        (["--validation_file", "nowhere.json"], ["--validation_file nowhere.json"]),
        (["--train_file", "BROKEN"], ["broken.json"]),
        (["--train_file", "WRONG_OFFSET"], ["wrong.json", "data[0].paragraphs[0].qas[0]"]),
        (["--output_dir", "FILE"], ["--output_dir", "is a file"]),
        (["--max_length", "500"], ["--max_length 500", "64"]),
        (["--doc_stride", "47"], ["doc_stride=47"]),
        (["--max_train_samples", "0"], ["max_train_samples=0 must be"]),
        (["--resume_from_checkpoint", "last"], ["no complete checkpoint", "leave the option out"]),
        (["--resume_from_checkpoint", "FOLDER"], ["not a checkpoint", "trainer_state.json"]),
        (["--dataset_name", "squad"], ["either --dataset_name or --train_file"]),
        (["--train_file", ""], ["--train_file is empty"]),
        (["--teacher_model", ""], ["--teacher_model is empty"]),
        (["--validation_split", "test"], ["--validation_split test is for data of several"]),
        (["--dataset_config_name", "x"], ["--dataset_config_name is for --dataset_name"]),
        (["--preprocessing_num_workers", "0"], ["--preprocessing_num_workers 0 must"]),
        (["--temperature", "0"], ["temperature must be a finite number above 0"]),
        (["--distillation_loss_weight", "nan"], ["distillation_loss_weight", "nan"]),
        (["--load_best_model_at_end"], ["load_best_model_at_end"]),
    ],
)
def test_bad_requests_fail_before_training(
    options: list[str],
    fragments: list[str],
    files: Files,
    train_options: list[str],
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.Trainer.train", lambda *a, **k: pytest.fail("it trains"))
    special = {name: tmp_path / name for name in ("FOLDER", "NO_TOKENIZER", "ENCODER")}
    special |= {"FILE": tmp_path / "file", "BROKEN": tmp_path / "broken.json"}
    special |= {"WRONG_OFFSET": tmp_path / "wrong.json"}
    special["FOLDER"].mkdir()
    special["FILE"].write_text("")
    model = model_for("question-answering", seed=0, layers=1)
    model.save_pretrained(special["NO_TOKENIZER"])
    model.bert.save_pretrained(special["ENCODER"])
    tokenizer().save_pretrained(special["ENCODER"])
    special["BROKEN"].write_text(Path(files.train).read_text()[:300])
    wrong = squad()
    wrong["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    special["WRONG_OFFSET"].write_text(json.dumps(wrong))
    result = program(*train_options, *(str(special.get(word, word)) for word in options))
    assert result.status == 2, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.mark.parametrize(
    ("left_out", "fragments"),
    [
        ("--teacher_model", ["--teacher_model is missing", "--baseline"]),
        ("--train_file", ["no training data", "--train_file"]),
        ("--output_dir", ["required", "--output_dir"]),
        ("--student_model", ["required", "--student_model"]),
    ],
)
def test_what_is_missing_is_named(
    left_out: str, fragments: list[str], train_options: list[str], program: Callable[..., Result]
) -> None:
    place = train_options.index(left_out)
    result = program(*train_options[:place], *train_options[place + 2 :])
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def test_evaluation_without_data_is_refused(
    train_options: list[str], program: Callable[..., Result]
) -> None:
    place = train_options.index("--validation_file")
    options = [*train_options[:place], *train_options[place + 2 :]]
    result = program(*options, "--eval_strategy", "epoch")
    assert result.status == 2
    assert "--validation_file" in result.stderr
    result = program(*options)
    assert result.status == 0, result.stderr


@pytest.mark.parametrize(("steps", "expected"), [(4, "checkpoint-4"), (0, "No checkpoint")])
def test_interruption_says_how_to_go_on(
    steps: int,
    expected: str,
    train_options: list[str],
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = DistillationTrainer.train

    def interrupted(self: DistillationTrainer, **kwargs: object) -> None:
        if steps:
            original(self, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillationTrainer, "train", interrupted)
    result = program(*train_options)
    assert result.status == 130
    assert expected in result.stderr
    assert ("--resume" in result.stderr) == bool(steps)


def test_samples_come_from_all_over_the_data(
    train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    result = program(*train_options, "--max_eval_samples", "4", "--max_steps", "1")
    assert result.status == 0, result.stderr
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [name.partition("-")[0] for name in predictions] == ["paris", "rome", "london", "cairo"]


@pytest.mark.slow
def test_two_processes_train_one_model_and_speak_once(
    files: Files, train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    # Not Adam, which makes steps of full size out of the rounding noise of gradients that are 0.
    train_options += ["--optim", "sgd", "--learning_rate", "0.1", "--max_steps", "2"]
    train_options += ["--train_sampling_strategy", "sequential"]
    # Not the label loss, which in BERT's own head depends on how far a batch is padded.
    train_options += ["--distillation_loss_weight", "1.0"]
    sizes = ["--per_device_train_batch_size", "2"]
    both = [*train_options, *sizes, "--output_dir", str(tmp_path / "two")]
    done = forked.run("hf_distill", *both, processes=2)
    assert (tmp_path / "two" / "metrics.json").is_file(), done.stderr
    assert done.stdout.count("Its scores are in metrics.json there.") == 1
    alone = [*train_options, "--per_device_train_batch_size", "4"]
    assert program(*alone).status == 0
    one, two = weights(tmp_path / "out"), weights(tmp_path / "two")
    difference = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert difference < 1e-5
    start = weights(Path(files.models["student_alone"]))
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-2
    scores = metrics(tmp_path / "out")["eval"], metrics(tmp_path / "two")["eval"]
    assert scores[0]["f1"] == pytest.approx(scores[1]["f1"])


def test_failed_scoring_keeps_the_student_and_says_how_to_score_it(
    train_options: list[str],
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> dict:
        raise OSError("no space for logits")

    monkeypatch.setattr("hf_distill.trainer.DistillationTrainer.evaluate", failing)
    folder = tmp_path / "run"
    result = program(*train_options, "--output_dir", folder)
    assert result.status == 2 and "no space for logits" in result.stderr
    assert f"hf-distill evaluate --model {folder}" in result.stderr
    assert (folder / "model.safetensors").is_file() and (folder / "trainer_state.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dvclive", "--report_to dvclive: the package dvclive is not installed; `pip install dvc"),
        ("comet_ml", "`pip install comet_ml`, or leave --report_to out."),
        ("tensorbord", "--report_to tensorbord must be one of azure_ml,"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_loaded(
    name: str, message: str, train_options: list[str], program: Callable[..., Result]
) -> None:
    result = program(*train_options, "--report_to", name)
    assert result.status == 2
    assert message in result.stderr
    assert "New in the student" not in result.stderr and "Cutting" not in result.stderr


def test_a_run_is_finished_only_with_its_predictions(
    train_options: list[str],
    tmp_path: Path,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill while they are written: the same command writes them."""
    write = training_run.write_json

    def full(path: Path, content: Any) -> None:
        if path.name == "nbest_predictions.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    out = tmp_path / "out"
    with monkeypatch.context() as patches:
        patches.setattr(training_run, "write_json", full)
        assert program(*train_options, "--save_steps", "2").status != 0
    assert not (out / "metrics.json").exists()
    again = program(*train_options, "--save_steps", "2", "--resume")
    assert again.status == 0, again.stderr
    assert (out / "nbest_predictions.json").exists() and (out / "metrics.json").exists()


@pytest.mark.parametrize("options", [[], ["--baseline"]])
def test_a_student_with_fewer_embeddings_than_its_tokenizer_has_tokens(
    options: list[str], train_options: list[str], tmp_path: Path, program: Callable[..., Result]
) -> None:
    small = model_for("question-answering", seed=1, layers=1, vocab_size=90)
    small.save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    result = program(*train_options, "--student_model", tmp_path / "small", *options)
    assert result.status == 2
    assert "97 tokens and the student knows only 90 of them. Use the tokenizer" in result.stderr


def test_an_error_does_not_share_the_line_of_the_progress_bar(
    train_options: list[str], program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError("the first batch is wrong.")

    monkeypatch.setattr(DistillationTrainer, "training_step", failing)
    result = program(*train_options, "--disable_tqdm", "false")
    *_, bar, message = result.stderr.splitlines()
    assert "?step/s" in bar
    assert "the first batch is wrong." in message
    assert message.startswith("hf-distill train: ")
