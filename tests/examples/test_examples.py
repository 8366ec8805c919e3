"""Each example runs, small, as its docstring says, and its figures are those of what it saved."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import optuna
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset
from packaging.version import Version
from PIL import Image
from seqeval.metrics import f1_score
from tiny import model_for, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchvision_available
from zoo import zoo_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TEMPERATURE = 3.0
COMMON = {
    "max_steps": 12,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 5,
    "temperature": TEMPERATURE,
    "distillation_loss_weight": 0.7,
    "teacher_trial_samples": 0,  # the teachers here are random
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}

RunScript = Callable[..., dict[str, Any]]


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: Any, capsys: Any) -> RunScript:
    """Run an example as a program would be, in this process; returns its ``eval_results.json``."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(script: str, *flags: str, output: str, **options: Any) -> dict[str, Any]:
        options = {**COMMON, "output_dir": tmp_path / output, **options}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [script, *words, *flags])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        results = tmp_path / output / "eval_results.json"
        if not results.exists():
            return {}
        printed = capsys.readouterr().out
        metrics: dict[str, Any] = json.loads(results.read_text())
        assert all(name in printed for name in metrics)
        return metrics

    return run


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: Any) -> Callable[[str], dict[str, Any]]:
    """What an example defines, without running it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return lambda script: runpy.run_path(str(EXAMPLES / script))


def saved_pair(
    folder: Path, task: str, architecture: str, names: Sequence[str] = (), **options: Any
) -> dict[str, str]:
    """A teacher, whose labels are in the order of ``names``, and a student that has none."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    options = {"pad_token_id": 0, **options}
    teacher = zoo_model(
        task, architecture, seed=1, layers=2, **options, **(labels if names else {})
    )
    student = zoo_model(task, architecture, seed=0, **options)
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(folder / name)
        if task != "image-classification":
            tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("teacher", "student")}


def soft_distance(student: Tensor, teacher: Tensor) -> float:
    """T² KL of rows of logits, written out."""
    p = functional.softmax(teacher / TEMPERATURE, dim=-1)
    q = functional.softmax(student / TEMPERATURE, dim=-1)
    return float((p * (p / q).log()).sum(-1).mean()) * TEMPERATURE**2


def reordered(logits: Tensor, teacher: Any, student: Any) -> Tensor:
    """The teacher's logits with its classes as the student has them, by name."""
    names = [student.config.id2label[i] for i in range(student.config.num_labels)]
    return logits[:, [teacher.config.label2id[name] for name in names]]


# ---- text classification ---------------------------------------------------------------------

# Not the order of the alphabet, which the student has.
FEELINGS = ("good", "bad", "so-so")


def feelings(rows: int, shift: int = 0) -> list[dict[str, str]]:
    words = {"good": "fine nice", "bad": "ugly", "so-so": "well"}
    return [
        {"text": f"{words[label]} no {i + shift}, {'very ' * (i % 4)}", "label": label}
        for i in range(rows)
        for label in [FEELINGS[(i + i // 5) % 3]]
    ]


@pytest.fixture
def feeling_files(tmp_path: Path) -> dict[str, str]:
    for name, rows in (("train", feelings(24)), ("dev", feelings(31, shift=100))):
        Dataset.from_list(rows).to_csv(tmp_path / f"{name}.csv")
    return {
        "dataset": "csv",
        "train_file": str(tmp_path / "train.csv"),
        "validation_file": str(tmp_path / "dev.csv"),
    }


def feeling_logits(folder: Path) -> tuple[Any, Tensor]:
    """A model, and its logits for each text of the validation data, one by one."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    encode = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            model(**encode(row["text"], return_tensors="pt")).logits
            for row in feelings(31, shift=100)
        ]
    return model, torch.cat(rows)


def test_run_classification(
    tmp_path: Path, run_script: RunScript, feeling_files: dict[str, str]
) -> None:
    pair = saved_pair(tmp_path, "text-classification", "bert", FEELINGS)
    options = {**pair, **feeling_files}
    distilled = run_script("run_classification.py", output="distilled", **options)
    options["teacher"] = str(tmp_path / "is not looked for")
    alone = run_script("run_classification.py", "--baseline", output="alone", **options)

    teacher, taught = feeling_logits(tmp_path / "teacher")
    distances = {}
    for name, metrics in (("distilled", distilled), ("alone", alone)):
        student, logits = feeling_logits(tmp_path / name)
        assert student.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
        gold = torch.tensor([student.config.label2id[r["label"]] for r in feelings(31, shift=100)])
        assert metrics["eval_accuracy"] == pytest.approx(
            float((logits.argmax(-1) == gold).double().mean())
        )
        loss = float(functional.cross_entropy(logits, gold))
        assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)
        distances[name] = soft_distance(logits, reordered(taught, teacher, student))
    assert distilled["eval_loss_prediction"] == pytest.approx(distances["distilled"], rel=1e-4)
    assert "eval_loss_prediction" not in alone
    assert distances["distilled"] < distances["alone"]
    assert distilled["eval_loss"] != alone["eval_loss"]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "named parquet"])
def test_classification_reads_every_kind_of_file(
    kind: str, tmp_path: Path, functions: Callable[[str], dict[str, Any]]
) -> None:
    example = functions("run_classification.py")
    ending = kind.rpartition(" ")[2]
    names = ["bad", "good", "so-so"]
    for name, rows in (("train", feelings(8)), ("dev", feelings(5))):
        table = Dataset.from_list(rows)
        if kind == "named parquet":
            table = table.cast_column("label", ClassLabel(names=list(FEELINGS)))
            names = list(FEELINGS)
        getattr(table, f"to_{ending}")(tmp_path / f"{name}.{ending}")
    script = example["ScriptArguments"](
        student="unused",
        dataset=ending,
        train_file=str(tmp_path / f"train.{ending}"),
        validation_file=str(tmp_path / f"dev.{ending}"),
        max_length=6,
    )
    train, validation, found = example["load_features"](script, tokenizer())
    assert found == names
    assert [names[number] for number in train["labels"]] == [r["label"] for r in feelings(8)]
    assert [names[number] for number in validation["labels"]] == [r["label"] for r in feelings(5)]
    assert set(train.column_names) == {
        "input_ids", "token_type_ids", "attention_mask", "labels",
    }  # fmt: skip
    assert max(map(len, train["input_ids"])) == 6


def test_hyperparameter_search(
    tmp_path: Path, run_script: RunScript, feeling_files: dict[str, str], monkeypatch: Any
) -> None:
    pair = saved_pair(tmp_path, "text-classification", "bert", FEELINGS)
    studies: list[Any] = []
    create_study = optuna.create_study

    def spy(*args: Any, **kwargs: Any) -> Any:
        studies.append(create_study(*args, **kwargs))
        return studies[-1]

    monkeypatch.setattr(optuna, "create_study", spy)
    run_script("hyperparameter_search.py", output="search", trials=3, **pair, **feeling_files)

    (study,) = studies
    assert len(study.trials) == 3
    for name, low, high in (("temperature", 1.0, 8.0), ("distillation_loss_weight", 0.1, 1.0)):
        tried = {trial.params[name] for trial in study.trials}
        assert len(tried) == 3 and low <= min(tried) and max(tried) <= high
    accuracies = {trial.value for trial in study.trials}
    best = json.loads((tmp_path / "search" / "best.json").read_text())
    assert best.pop("accuracy") == study.best_value == max(accuracies)
    assert best == study.best_params
    # The values reached the training: with those of a trial it is the same training again.
    assert len(accuracies) > 1
    for trial in (study.best_trial, min(study.trials, key=lambda trial: trial.value)):
        options = {**pair, **feeling_files, **trial.params}
        again = run_script("run_classification.py", output=f"trial{trial.number}", **options)
        assert again["eval_accuracy"] == trial.value


# ---- token classification --------------------------------------------------------------------

TAGS = ("O", "B-place", "B-name", "I-name")


def sentences(rows: int, shift: int = 0) -> list[dict[str, list[str]]]:
    some = [
        (["Ann", "Lee", "met", "Bob"], ["B-name", "I-name", "O", "B-name"]),
        (["in", "Rome", ",", "too"], ["O", "B-place", "O", "O"]),
        (["Lee", "left", "Oslo"], ["B-name", "O", "B-place"]),
    ]
    made = []
    for row in range(rows):
        words, tags = some[(row + shift) % 3]
        extra = [f"{row + shift}"] * (row % 3)
        made.append({"tokens": [*extra, *words], "tags": [*["O"] * len(extra), *tags]})
    return made


def tag_logits(folder: Path, most: int) -> tuple[Any, list[Tensor]]:
    """For each sentence of the validation data the logits at the first piece of each word."""
    model = AutoModelForTokenClassification.from_pretrained(folder)
    encode = AutoTokenizer.from_pretrained(folder)
    found = []
    for sentence in sentences(10, shift=7):
        pieces = [encode.encode(word, add_special_tokens=False) for word in sentence["tokens"]]
        firsts = [1 + sum(map(len, pieces[:place])) for place in range(len(pieces))]
        ids = [2, *list(chain.from_iterable(pieces))[: most - 2], 3]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        found.append(logits[[place for place in firsts if place < len(ids) - 1]])
    return model, found


def test_run_token_classification(tmp_path: Path, run_script: RunScript) -> None:
    most = 14  # cuts off the end of the longest sentences
    pair = saved_pair(tmp_path, "token-classification", "bert", TAGS, num_labels=4)
    files = {"train_file": tmp_path / "train.jsonl", "validation_file": tmp_path / "dev.jsonl"}
    for path, rows in zip(files.values(), (sentences(12), sentences(10, shift=7)), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {
        **pair, **files, "dataset": "json", "max_length": most, "learning_rate": 1e-2,
        "max_steps": 60, "distillation_loss_weight": 0.3,
    }  # fmt: skip
    distilled = run_script("run_token_classification.py", output="distilled", **options)
    options["teacher"] = str(tmp_path / "is not looked for")
    alone = run_script("run_token_classification.py", "--baseline", output="alone", **options)

    teacher, taught = tag_logits(tmp_path / "teacher", most)
    distances = {}
    for name, metrics in (("distilled", distilled), ("alone", alone)):
        student, logits = tag_logits(tmp_path / name, most)
        names = student.config.id2label
        assert list(names.values()) == sorted(TAGS)
        found = [[names[int(i)] for i in rows.argmax(-1)] for rows in logits]
        gold = [
            sentence["tags"][: len(tags)]
            for sentence, tags in zip(sentences(10, shift=7), found, strict=True)
        ]
        assert sum(map(len, gold)) < sum(len(sentence["tags"]) for sentence in sentences(10, 7))
        assert metrics["eval_f1"] == pytest.approx(f1_score(gold, found))
        assert metrics["eval_f1"] > 0
        distances[name] = soft_distance(
            torch.cat(logits), reordered(torch.cat(taught), teacher, student)
        )
    assert distilled["eval_loss_prediction"] == pytest.approx(distances["distilled"], rel=1e-4)
    assert distances["distilled"] < distances["alone"]
    assert distilled["eval_loss"] != alone["eval_loss"]


# ---- causal language models ------------------------------------------------------------------

BLOCK = 16


def verses(rows: int, shift: int = 0) -> str:
    return "".join(f"verse {row + shift} of the song,\n" for row in range(rows))


def test_run_causal_lm(tmp_path: Path, run_script: RunScript) -> None:
    pair = saved_pair(tmp_path, "text-generation", "llama")
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "dev.txt"}
    files["train_file"].write_text(verses(20))
    files["validation_file"].write_text(verses(9, shift=40))
    options = {
        "teacher": pair["teacher"], "student_layers": 1, "dataset": "text", "block_size": BLOCK,
        **files,
    }  # fmt: skip
    distilled = run_script("run_causal_lm.py", output="distilled", **options)
    alone = run_script("run_causal_lm.py", "--baseline", output="alone", **options)
    del options["student_layers"]
    other = run_script("run_causal_lm.py", output="other", student=pair["student"], **options)

    ids = tokenizer().encode(verses(9, shift=40), add_special_tokens=False)
    blocks = torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)
    assert len(blocks) > 5
    for name, metrics in (("distilled", distilled), ("alone", alone), ("other", other)):
        student = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert student.config.num_hidden_layers == 1
        with torch.no_grad():
            logits = student(blocks).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        assert metrics["eval_perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert len({metrics["eval_loss"] for metrics in (distilled, alone, other)}) == 3
    assert "eval_loss_prediction" in distilled and "eval_loss_prediction" not in alone


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("layers, kept", [(1, [0]), (2, [0, 4]), (3, [0, 2, 4])])
def test_a_shallow_student_is_the_teacher_with_fewer_layers(
    architecture: str,
    layers: int,
    kept: list[int],
    tmp_path: Path,
    functions: Callable[[str], dict[str, Any]],
) -> None:
    example = functions("run_causal_lm.py")
    teacher = zoo_model("text-generation", architecture, seed=1, layers=5)
    teacher.to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    # Anew, for the frequencies of rotary positions have been rounded and are not saved.
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype="float32")
    student = example["shallow_student"](str(tmp_path / "teacher"), layers).eval()
    assert student.dtype == torch.float32
    student.save_pretrained(tmp_path / "student")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ids = torch.arange(5, 15)[None]
    stack = example["layers_of"](teacher)
    remaining = [stack[place] for place in kept]
    del stack[:]
    stack.extend(remaining)
    teacher.config.num_hidden_layers = layers
    with torch.no_grad():
        expected = teacher(ids, use_cache=False).logits
        assert torch.equal(loaded(ids).logits, student(ids).logits)
    torch.testing.assert_close(loaded(ids).logits, expected)


def test_blocks_hold_all_texts_in_order(
    tmp_path: Path, functions: Callable[[str], dict[str, Any]]
) -> None:
    """Documents end with the end-of-sequence token; lines do not."""
    example = functions("run_causal_lm.py")
    encode = tokenizer()
    encode.eos_token = "[SEP]"
    documents = [{"text": "ann met bob"}, {"text": "in may\n"}, {"text": "and left"}]
    for name in ("train", "dev"):
        Dataset.from_list(documents).to_json(tmp_path / f"{name}.json")
    script = example["ScriptArguments"](
        teacher="unused",
        dataset="json",
        train_file=str(tmp_path / "train.json"),
        validation_file=str(tmp_path / "dev.json"),
        block_size=6,
    )
    train, validation = example["load_blocks"](script, encode)
    ids = encode("ann met bob [SEP] in may and left [SEP]", add_special_tokens=False)["input_ids"]
    assert len(ids) % 6 != 0
    assert train["input_ids"] == train["labels"] == validation["input_ids"]
    assert list(chain.from_iterable(train["input_ids"])) == ids[: len(ids) // 6 * 6]


@pytest.mark.parametrize("options", [{}, {"student": "a", "student_layers": 2}])
def test_a_causal_student_is_named_once(
    options: dict[str, Any], run_script: RunScript, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        run_script("run_causal_lm.py", output="out", teacher="t", dataset="text", **options)
    assert "give one of --student and --student_layers" in capsys.readouterr().err


# ---- images ----------------------------------------------------------------------------------

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (10, 40, 220)}


def paint(folder: Path, each: int, shift: int = 0) -> None:
    """Pictures of colours, larger than the model's, and a grey one among them."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            picture = Image.new("RGB", (12, 10), tuple(min(c + 9 * number, 255) for c in colour))
            picture.paste((250, 250, 250), (number, shift % 5, number + 3, 6))
            if number == 1:
                picture = picture.convert("L")
            picture.save(folder / label / f"{number}.png")


def picture_logits(model_folder: Path, photos: Path, prepare: Any) -> tuple[Any, Tensor, list[str]]:
    model = AutoModelForImageClassification.from_pretrained(model_folder)
    rows, labels = [], []
    for path in sorted(photos.glob("*/*.png")):
        image = Image.open(path).convert("RGB")
        with torch.no_grad():
            rows.append(model(**prepare(image, return_tensors="pt")).logits)
        labels.append(path.parent.name)
    return model, torch.cat(rows), labels


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18") and not is_torchvision_available(),
    reason="AutoImageProcessor of transformers 5.17 cannot be imported without torchvision",
)
def test_run_image_classification(tmp_path: Path, run_script: RunScript) -> None:
    pair = saved_pair(tmp_path, "image-classification", "vit", tuple(COLOURS))
    # As it would come from the Hub: a head for other classes.
    zoo_model("image-classification", "vit", seed=0, num_labels=7).save_pretrained(pair["student"])
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(pair["student"])
    paint(tmp_path / "photos" / "train", 5)
    paint(tmp_path / "photos" / "validation", 4, shift=2)
    options = {**pair, "dataset": tmp_path / "photos"}
    distilled = run_script("run_image_classification.py", output="distilled", **options)
    options["teacher"] = str(tmp_path / "is not looked for")
    alone = run_script("run_image_classification.py", "--baseline", output="alone", **options)

    photos = tmp_path / "photos" / "validation"
    distances = {}
    for name, metrics in (("distilled", distilled), ("alone", alone)):
        prepare = AutoImageProcessor.from_pretrained(tmp_path / name)
        student, logits, labels = picture_logits(tmp_path / name, photos, prepare)
        assert list(student.config.id2label.values()) == sorted(COLOURS)
        gold = torch.tensor([student.config.label2id[label] for label in labels])
        right = (logits.argmax(-1) == gold).double().mean()
        assert metrics["eval_accuracy"] == pytest.approx(float(right))
        loss = float(functional.cross_entropy(logits, gold))
        assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-4)
        teacher, taught, _ = picture_logits(tmp_path / "teacher", photos, prepare)
        distances[name] = soft_distance(logits, reordered(taught, teacher, student))
    assert distilled["eval_loss_prediction"] == pytest.approx(distances["distilled"], rel=1e-4)
    assert distances["distilled"] < distances["alone"]
    assert distilled["eval_loss"] != alone["eval_loss"]


# ---- question answering ----------------------------------------------------------------------


def squad_file(path: Path, questions: int) -> Path:
    """Who did what, over a handful of names."""
    names = ["ann", "bob", "cy", "dee"]
    paragraphs = [
        {
            "context": f"{name} met {other} in may.",
            "qas": [
                {
                    "id": f"{i}",
                    "question": f"who met {other}?",
                    "answers": [{"text": name, "answer_start": 0}],
                }
            ],
        }
        for i in range(questions)
        for name, other in [(names[i % 4], names[(i + 1 + i // 4) % 4])]
    ]
    data = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(data))
    return path


def test_run_qa(tmp_path: Path) -> None:
    for name, seed in (("teacher", 1), ("student", 0)):
        model_for("question-answering", seed=seed).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    options = {
        "student": tmp_path / "student",
        "teacher": tmp_path / "teacher",
        "train_file": squad_file(tmp_path / "train.json", 8),
        "validation_file": squad_file(tmp_path / "dev.json", 4),
        "output_dir": tmp_path / "distilled",
        "max_length": 32,
        "doc_stride": 4,
        "max_steps": 2,
        "use_cpu": True,
    }
    command = [sys.executable, str(EXAMPLES / "run_qa.py")]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert "eval_exact_match" in result.stdout and "eval_loss_prediction" in result.stdout
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "distilled")
