"""Language models: a teacher with another tokenizer, and log-probabilities of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from cli_runs import Result
from task_runs import OPTIONS, save_model, write_data
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from vocabularies import KINDS

Program = Callable[..., Result]
TASK = "text-generation"


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    """A student of bytes, and a teacher with merges."""
    student = save_model(tmp_path / "student", TASK)
    words = KINDS["byte_level"]()
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=len(words), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    teacher = GPT2LMHeadModel(config)
    for one in (teacher, words):
        one.save_pretrained(tmp_path / "teacher")
    return student, str(tmp_path / "teacher")


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    file = write_data(tmp_path, TASK)
    return ["--task", TASK, "--train_file", file, "--use_cpu", "--block_size", "32"]


def train(program: Program, data: list[str], student: str, out: Path, *argv: Any) -> Any:
    result = program(
        "train", *data, "--student_model", student, "--output_dir", out, "--max_steps", "2",
        "--logging_steps", "1", "--disable_tqdm", "true", "--save_strategy", "no", *argv,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    return json.loads((out / "trainer_state.json").read_text()) if not argv else result


def losses(out: Path) -> list[float]:
    history = json.loads((out / "metrics.json").read_text())
    return [history["train"]["loss"]]


def log_probs(teacher: str, ids: list[int]) -> list[Any]:
    """The text's own tokens, as vLLM writes them with prompt_logprobs=0."""
    lm: Any = AutoModelForCausalLM.from_pretrained(teacher)
    with torch.no_grad():
        values = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [{str(i): {"logprob": float(values[n, i])}} for n, i in enumerate(ids[1:])]
    return [None, *own]


def test_imported_log_probs_teach_as_the_live_teacher_does(
    program: Program, models: tuple[str, str], data: list[str], tmp_path: Path
) -> None:
    student, teacher = models
    cache = ["cache", *data, "--teacher_model", teacher, "--tokenizer", student]
    cache += ["--output_dir", tmp_path / "outputs", "--dtype", "float32"]
    written = program(*cache[:-2], "--write_prompts", tmp_path / "ids.jsonl")
    assert written.status == 0, written.stderr
    assert f"rows are in {tmp_path / 'ids.jsonl'}" in written.stdout
    assert not (tmp_path / "outputs").exists()
    prompts = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
    words = AutoTokenizer.from_pretrained(teacher)
    assert "the cat sat" in words.decode(prompts[0]["prompt_token_ids"])
    lines = [
        one | {"prompt_logprobs": log_probs(teacher, one["prompt_token_ids"])} for one in prompts
    ]
    logged = tmp_path / "logged.jsonl"
    logged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = program(*cache, "--teacher_log_probs", logged)
    assert result.status == 0, result.stderr
    train(program, data, student, tmp_path / "imported", "--teacher_outputs", tmp_path / "outputs")
    train(program, data, student, tmp_path / "live", "--teacher_model", teacher)
    imported, live = losses(tmp_path / "imported"), losses(tmp_path / "live")
    assert imported == pytest.approx(live, rel=1e-5)
    train(program, data, student, tmp_path / "alone", "--baseline")
    assert losses(tmp_path / "alone") != pytest.approx(live, rel=1e-3)


USELESS = {  # with --teacher_log_probs; with --write_prompts these and two more
    "--top_k": "8",
    "--batch_size": "32",  # the default
    "--mixed_precision": "bf16",
    "--teacher_dtype": "float32",
    "--teacher_weights": "0.5",
    "--teacher_combination": "logits",
}
CASES = [
    *(("--teacher_log_probs", [*one]) for one in USELESS.items()),
    *(("--write_prompts", [*one]) for one in USELESS.items()),
    ("--write_prompts", ["--dtype", "float32"]),
    ("--write_prompts", ["--teacher_log_probs", "nowhere.jsonl"]),
]


@pytest.mark.parametrize(("mode", "options"), CASES)
def test_options_without_a_use_are_refused(
    mode: str,
    options: list[str],
    program: Program,
    models: tuple[str, str],
    data: list[str],
    tmp_path: Path,
) -> None:
    result = program(
        "cache", *data, "--teacher_model", models[1], "--output_dir", tmp_path / "outputs",
        mode, tmp_path / "log.jsonl", *options,
    )  # fmt: skip
    assert result.status == 2 and "rows" not in result.stderr
    assert f"{options[0]} cannot be used with {mode}" in result.stderr
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("mode", ["--teacher_log_probs", "--write_prompts"])
def test_several_teachers_have_no_log_probs(
    mode: str, program: Program, models: tuple[str, str], data: list[str], tmp_path: Path
) -> None:
    result = program(
        "cache", *data, "--teacher_model", models[1], models[1], "--output_dir",
        tmp_path / "outputs", mode, tmp_path / "log.jsonl",
    )  # fmt: skip
    assert result.status == 2 and f"cannot be used with {mode}" in result.stderr


def test_files_of_log_probs_are_checked_before_the_data_is_read(
    program: Program, models: tuple[str, str], data: list[str], tmp_path: Path
) -> None:
    train = data[data.index("--train_file") + 1]
    before = Path(train).read_bytes()
    cache = ["cache", *data, "--teacher_model", models[1], "--output_dir", tmp_path / "outputs"]
    for options, needs in (
        (["--write_prompts", train], f"--write_prompts: {train} is there already"),
        (["--write_prompts", f"{train}/ids.jsonl"], f"--write_prompts: {train}/ids.jsonl cannot"),
        (["--teacher_log_probs", "nowhere.jsonl"], "--teacher_log_probs nowhere.jsonl: there is"),
    ):
        result = program(*cache, *options)
        assert result.status == 2 and needs in result.stderr, result.stderr
        assert "rows" not in result.stderr
    assert Path(train).read_bytes() == before


@pytest.mark.slow
def test_of_two_processes_one_writes_the_token_ids(
    models: tuple[str, str], data: list[str], tmp_path: Path
) -> None:
    done = forked.run(
        "hf_distill", "cache", *data, "--teacher_model", models[1], "--output_dir",
        str(tmp_path / "outputs"), "--write_prompts", str(tmp_path / "ids.jsonl"),
        processes=2, environment={"ACCELERATE_USE_CPU": "true"}, seconds=300,
    )  # fmt: skip
    assert done.ok, done.stderr
    assert done.stdout.count("The token ids of") == 1


def test_other_tasks_have_no_log_probs(program: Program, tmp_path: Path) -> None:
    task = "text-classification"
    teacher = save_model(tmp_path / "teacher", task)
    result = program(
        "cache", "--task", task, "--teacher_model", teacher, "--train_file",
        write_data(tmp_path, task), "--output_dir", tmp_path / "out", "--use_cpu",
        "--teacher_log_probs", "logged.jsonl", *OPTIONS.get(task, []),
    )  # fmt: skip
    assert result.status == 2
    assert "--teacher_log_probs" in result.stderr and task in result.stderr
