"""The examples for language models, images and question answering; see test_examples."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import transformers
from datasets import Dataset
from example_runs import (
    EXAMPLES,
    RunScript,
    reordered,
    saved_pair,
    soft_distance,
)
from packaging.version import Version
from PIL import Image
from tiny import model_for, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    ViTImageProcessorPil,
)
from transformers.utils import is_torchvision_available
from zoo import zoo_model

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
    command = [forked.interpreter(), str(EXAMPLES / "run_qa.py")]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert "eval_exact_match" in result.stdout and "eval_loss_prediction" in result.stdout
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "distilled")
