from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from hf_distill import DistillationTrainingArguments
from hf_distill.cli import answer, sweep, train
from hf_distill.cli.train import _WITHOUT_EFFECT, build_parser

NEEDED = ["--task", "question-answering", "--student_model", "s", "--output_dir", "o", "--use_cpu"]


def parse(*words: str, config: str | None = None, folder: Path | None = None) -> Any:
    """All options by name."""
    argv = [*NEEDED, *words]
    if config is not None and folder is not None:
        (folder / "run.yaml").write_text(config)
        argv += ["--config", str(folder / "run.yaml")]
    parts = build_parser().parse(argv)
    return {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}


def complaint(capsys: pytest.CaptureFixture[str], *words: str, **kwargs: Any) -> str:
    with pytest.raises(SystemExit) as leaving:
        parse(*words, **kwargs)
    assert leaving.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("temperature: 5", "temperature", 5.0),
        ("learning_rate: 3e-5", "learning_rate", 3e-5),  # a string to YAML 1.1
        ("learning-rate: 0.1", "learning_rate", 0.1),
        ("bf16_full_eval: true", "bf16_full_eval", True),
        ("eval_with_teacher: false", "eval_with_teacher", False),
        ("eval_with_teacher: no", "eval_with_teacher", False),
        ("save_strategy: no", "save_strategy", "no"),  # false to YAML 1.1
        ("logging_strategy: 'no'", "logging_strategy", "no"),
        ("label_names: [start_positions, end_positions]", "label_names",
         ["start_positions", "end_positions"]),
        ("report_to: [none]", "report_to", []),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("liger_kernel_config: {rope: true}", "liger_kernel_config", {"rope": True}),
        ("max_steps: -1", "max_steps", -1),
        ("teacher_model: -weird", "teacher_model", ["-weird"]),
        ("train_file: -weird", "train_file", "-weird"),
        ("temperature:", "temperature", 2.0),
        ("train_file: 'a b.json'", "train_file", "a b.json"),
        ("layer_mapping: 3:6", "layer_mapping", "3:6"),  # 186 to YAML 1.1
        ("layer_mapping: 1:2,3:6", "layer_mapping", "1:2,3:6"),
        ("layer_mapping: 2,4,6", "layer_mapping", "2,4,6"),
        # Text as it is written, where YAML 1.1 reads true, false, 42798, 1.1, 10, or a date.
        *((f"source_prefix: {text}", "source_prefix", text)
          for text in ("on", "NO", "0123456", "1.10", "1_0", "0x1F", "2026-01-01")),
        ("teacher_model: [on, 007, 1.10]", "teacher_model", ["on", "007", "1.10"]),
        ("report_to: [off]", "report_to", ["off"]),
        # Numbers as on the command line: 010 is not octal.
        ("seed: 010", "seed", 10),
        ("seed: 1_0", "seed", 10),
        ("temperature: 010", "temperature", 10.0),
        ("lr_scheduler_kwargs: {num_cycles: 010, on: [1_0, .5]}", "lr_scheduler_kwargs",
         {"num_cycles": 10, True: [10, 0.5]}),
        ("bf16_full_eval: on", "bf16_full_eval", True),
        ("eval_with_teacher: OFF", "eval_with_teacher", False),
    ],
)  # fmt: skip
def test_config_file_means_what_it_says(
    line: str, name: str, value: object, tmp_path: Path
) -> None:
    assert parse(config=line, folder=tmp_path)[name] == value


def test_what_is_given_is_told_from_defaults(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "temperature: 2.0\nseed: 7\nlabel_names: [a, b]\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "eval_with_teacher: no\nlayer_mapping: 3:6\nsave_strategy: no\nteacher_model:\n"
    )
    words = [*NEEDED, "--config", str(tmp_path / "run.yaml"), "--seed", "8"]
    parser = build_parser()
    given = parser.given(words)
    assert given == {
        "task": "question-answering",
        "student_model": "s",
        "output_dir": "o",
        "use_cpu": True,
        "config": str(tmp_path / "run.yaml"),
        "temperature": 2.0,  # the default, and given all the same
        "seed": 8,
        "label_names": ["a", "b"],
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "eval_with_teacher": False,
        "layer_mapping": "3:6",
        "save_strategy": "no",
    }
    # Written down and read again, they are the same options.
    del given["config"]
    text = yaml.safe_dump({**given, "run_name": None})
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert {**build_parser().given(["--config", str(again)]), "config": None} == {
        **given, "config": None,
    }  # fmt: skip
    by_words = build_parser()
    read = by_words.parse(by_words.words_of(given, "given"))
    for one, other in zip(read, build_parser().parse(words), strict=True):
        for field in dataclasses.fields(one):
            if field.name not in ("config", "logging_dir"):
                assert getattr(one, field.name) == getattr(other, field.name)


def test_what_is_given_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().given([*NEEDED, "--temprature", "3"])
    assert "Did you mean --temperature?" in capsys.readouterr().err


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    config = "temperature: 5\nseed: 7\neval_with_teacher: true\nlabel_names: [a, b]"
    words = ("--temperature", "3", "--no_eval_with_teacher", "--label_names", "c")
    options = parse(*words, config=config, folder=tmp_path)
    assert options["temperature"] == 3.0
    assert options["eval_with_teacher"] is False
    assert options["label_names"] == ["c"]
    assert options["seed"] == 7


def test_dictionary_of_the_file_is_overridden_too(tmp_path: Path) -> None:
    options = parse(
        *("--lr_scheduler_kwargs", '{"num_cycles": 1}'),
        config="lr_scheduler_kwargs: {num_cycles: 2}",
        folder=tmp_path,
    )
    assert options["lr_scheduler_kwargs"] == {"num_cycles": 1}


def test_required_options_may_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "task: question-answering\nstudent_model: s\noutput_dir: o\nuse_cpu: true\n"
    )
    run, *_ = build_parser().parse(["--config", str(tmp_path / "run.yaml")])
    assert run.student_model == "s"


@pytest.mark.parametrize(
    ("config", "fragments"),
    [
        ("temprature: 5", ["run.yaml", "'temprature'", "Did you mean temperature?"]),
        ("zzz: 5", ["'zzz'"]),
        ("config: other.yaml", ["'config'"]),
        ("temperature: hot", ["--temperature", "'hot'"]),
        ("temperature: -1", ["temperature must be a finite number above 0", "-1.0"]),
        ("temperature: [1, 2]", ["temperature takes one value", "[1, 2]"]),
        ("task: {a: 1}", ["task takes one value"]),
        ("distillation_loss: cosine", ["--distillation_loss", "cosine", "kl_div"]),
        ("- temperature", ["holds a list", "name: value"]),
        ("", ["holds a NoneType"]),
        ("temperature: 'open", ["not a YAML file", "line"]),
        ("seed: 1\ntemperature: 2\nseed: 1", ["'seed' is there twice, in lines 1 and 3"]),
        ("lr_scheduler_kwargs:\n  a: 1\n  a: 2", ["'a' is there twice, in lines 2 and 3"]),
        ("warmup-steps: 1\nwarmup_steps: 2", ["warmup-steps and warmup_steps are one option"]),
        ("max_steps: 0x10", ["--max_steps", "'0x10'"]),
        ("label_names: [a, null]", ["label_names", "an empty value"]),
        ("seed: 12:30", ["--seed", "'12:30'"]),
    ],
)
def test_bad_config_file(
    config: str, fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = complaint(capsys, config=config, folder=tmp_path)
    for fragment in fragments:
        assert fragment in message


def test_config_file_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"seed: !!python/object/apply:os.mkdir ['{tmp_path}/made']"
    complaint(capsys, config=config, folder=tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--temprature", "5"], ["no option --temprature", "Did you mean --temperature?"]),
        (["--lr", "5"], ["no option --lr.", "Did you mean --learning_rate?"]),
        (["--temprature=5"], ["no option --temprature.", "Did you mean --temperature?"]),
        (["--temp", "5"], ["no option --temp"]),
        (["--seed", "1", "stray"], ["'stray'"]),
        (["--temperature", "hot"], ["argument --temperature:", "'hot'"]),
        (["--bf16", "maybe"], ["--bf16", "maybe"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["--task", "poetry"], ["poetry", "question-answering", "text-classification"]),
        (["--distillation_loss_weight", "1.5"], ["distillation_loss_weight", "1.5"]),
        (["--lr_scheduler_type", "up"], ["--lr_scheduler_type", "up"]),
        (["--lr_scheduler_kwargs", '{"a"'], ["delimiter"]),
    ],
)
def test_bad_command_line(
    words: list[str], fragments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = complaint(capsys, *words)
    assert "hf-distill train --help" in message
    for fragment in fragments:
        assert fragment in message


def test_hyphens_are_as_good_as_underscores() -> None:
    assert parse("--distillation-loss-weight", "0.25")["distillation_loss_weight"] == 0.25


@pytest.mark.parametrize("command", [train, sweep], ids=["train", "sweep"])
def test_the_help_that_comes_without_torch_is_the_same(command: Any) -> None:
    whole = command.build_parser().format_help()
    computed = r" \(default:\s+adamw_torch(_fused)?\)"  # by the version of PyTorch
    assert re.search(computed, whole)
    expected = re.sub(r"\s+", " ", re.sub(computed, "", whole))
    assert re.sub(r"\s+", " ", command.build_parser(outlined=True).format_help()) == expected


def test_what_is_read_without_torch_is_the_same(tmp_path: Path) -> None:
    config = "temperature: 5\nlabel_names: [a, b]\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    config += "bf16_full_eval: on\nsave_strategy: no\ndebug: underflow_overflow\nfsdp: true\n"
    (tmp_path / "run.yaml").write_text(config)
    words = [*NEEDED, "--config", str(tmp_path / "run.yaml"), "--logging_steps", "0.5"]
    whole, outlined = build_parser().given(words), build_parser(outlined=True).given(words)
    assert {name: str(getattr(value, "value", value)) for name, value in outlined.items()} == {
        name: str(getattr(value, "value", value)) for name, value in whole.items()
    }


def test_help_lists_every_option_once_and_in_order() -> None:
    text = build_parser().format_help()
    titles = ["model", "data", "columns and length of the data", "question answering"]
    titles += ["text classification", "fill-mask and text generation"]
    titles += ["summarization and translation", "distillation", "training"]
    titles += ["everything else that transformers.TrainingArguments takes", "examples"]
    places = [text.index(f"\n{title}:") for title in titles]
    assert places == sorted(places)
    for field in dataclasses.fields(DistillationTrainingArguments):
        expected = 0 if not field.init or field.name in _WITHOUT_EFFECT else 1
        assert text.count(f"\n  --{field.name} ") == expected, field.name
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    own = [f.name for f in dataclasses.fields(DistillationTrainingArguments)
           if f.name not in inherited]  # fmt: skip
    assert "temperature" in own
    for name in own:
        assert places[7] < text.index(f"\n  --{name} ") < places[8]


def test_help_of_an_option_says_its_default() -> None:
    text = " ".join(build_parser().format_help().split())
    assert "the loss `mse`.) (default: 2.0)" in text
    assert "(default: true; turn off: --no_eval_with_teacher)" in text
    assert "(default: None)" not in text


def test_home_folder_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a shell does not replace it: after `=`, in quotes, in YAML."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        "teacher_outputs: ~/cache\nvalidation_file: ~/a=~/b\nrecord_steps: 3\n"
    )
    found = parse("--config=~/run.yaml", "--train_file", "~/train.json", "--run_name", "x~/y")
    assert found["teacher_outputs"] == f"{tmp_path}/cache"
    assert found["validation_file"] == f"{tmp_path}/a=~/b"
    assert found["train_file"] == f"{tmp_path}/train.json"
    assert found["run_name"] == "x~/y"
    ask = ["--model=~/m", "--question=~/?"]
    asked, _ = answer.build_parser().parse([*ask, "--context", "~/ is a folder"])
    assert asked.model == f"{tmp_path}/m"
    assert asked.question == "~/?" and asked.context == "~/ is a folder"
