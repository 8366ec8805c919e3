"""A teacher with the whole vocabulary teaches a student with a part of it: ids are mapped."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import distil, logged
from tokenizers import normalizers
from torch import nn
from transformers import AutoTokenizer, default_data_collator
from vocabularies import KINDS, SENTENCES
from zoo import zoo_model

from hf_distill import cache_teacher_outputs, check_pair
from hf_distill.compatibility.tokenizers import check_map, tokenizer_hash
from hf_distill.compatibility.vocabulary_map import VocabularyMap
from hf_distill.students import trim_vocabulary

CORPUS = [SENTENCES[0], SENTENCES[2], "hello shells, unhelpful <mask> people help"]
TASKS = {
    "question-answering": ("bert", "word_piece"),
    "text-classification": ("roberta", "byte_level"),
    "token-classification": ("bert", "unigram"),
    "multiple-choice": ("bert", "word_piece"),
    "fill-mask": ("roberta", "byte_level"),
    "text-generation": ("gpt2", "byte_level"),
    "summarization": ("bart", "unigram"),
}
LANGUAGE = ("fill-mask", "text-generation", "summarization")
START = {"summarization": 2}
TEMPERATURE = 2.0


@cache
def whole(kind: str) -> Any:
    return KINDS[kind]()


def model(task: str, *, seed: int, layers: int = 1, **options: Any) -> Any:
    architecture, kind = TASKS[task]
    extra = whole(kind).convert_tokens_to_ids("<extra_0>") if task in START else None
    start = {"decoder_start_token_id": extra, "bos_token_id": 0} if task in START else {}
    sizes = {"vocab_size": len(whole(kind)) + 5, "max_position_embeddings": 130, "pad_token_id": 1}
    one = zoo_model(task, architecture, seed=seed, layers=layers, **{**sizes, **start, **options})
    return one.eval()


def trimmed(task: str, **options: Any) -> tuple[Any, Any, Any]:
    """Student with the whole vocabulary, trimmed student, and its tokenizer."""
    student = model(task, seed=0, **options)
    return (student, *trim_vocabulary(student, whole(TASKS[task][1]), CORPUS))


def rows(task: str, tokenizer: Any) -> Dataset:
    """The corpus with labels, padded to one length, in the ids of a tokenizer."""
    encoded = tokenizer(CORPUS * 2, padding="max_length", max_length=64)
    ids = torch.tensor(encoded["input_ids"])
    mask = torch.tensor(encoded["attention_mask"])
    columns: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    random = torch.Generator().manual_seed(0)
    counts = torch.rand(ids.shape, generator=random) < 0.5
    counts &= mask.bool()
    classes = torch.randint(0, 3, ids.shape, generator=random)
    if TASKS[task][0] == "bert":
        columns["token_type_ids"] = (torch.arange(64) > 4).long() * mask
    if task == "question-answering":
        columns |= {"start_positions": torch.arange(6), "end_positions": torch.arange(6) + 2}
    elif task == "text-classification":
        columns["labels"] = classes[:, 0]
    elif task == "token-classification":
        columns["labels"] = classes.masked_fill(~counts, -100)
    elif task == "multiple-choice":
        columns = {name: torch.stack((one, one.flip(0)), 1) for name, one in columns.items()}
        columns["labels"] = classes[:, 0] % 2
    elif task == "summarization":
        columns["labels"] = ids.flip(0).masked_fill(~mask.flip(0).bool(), -100)
    else:
        columns["labels"] = ids.masked_fill(~counts, -100)
    return Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def train(
    path: Path, student: Any, teacher: Any, data: Dataset, tokenizer: Any, **options: Any
) -> Any:
    trainer, _ = distil(
        "",
        path,
        student=student,
        teacher=teacher,
        train_dataset=data,
        trainer_options={"data_collator": default_data_collator, "processing_class": tokenizer},
        **{
            "max_steps": 3,
            "teacher_check_samples": 0,
            "per_device_train_batch_size": 6,
            "temperature": TEMPERATURE,
            "distillation_loss_weight": 0.6,
            **options,
        },
    )
    return trainer


@pytest.mark.parametrize("task", [task for task in TASKS if task not in LANGUAGE])
def test_a_trimmed_student_learns_what_the_whole_one_would(task: str, tmp_path: Path) -> None:
    teacher = model(task, seed=1, layers=2)
    full, small, part = trimmed(task)
    before = train(tmp_path, full, teacher, rows(task, whole(TASKS[task][1])), None)
    after = train(tmp_path, small, teacher, rows(task, part), part)
    for name in ("loss", "loss_task", "loss_prediction"):
        assert logged(after, name) == pytest.approx(logged(before, name), rel=1e-5), name
    assert min(logged(after, "loss_prediction")) > 1e-4


@pytest.mark.parametrize("task", LANGUAGE)
def test_language_models_are_compared_on_the_kept_columns(task: str, tmp_path: Path) -> None:
    teacher = model(task, seed=1, layers=2)
    full, small, part = trimmed(task)
    ids = VocabularyMap.of(part).ids  # type: ignore[union-attr]
    data = rows(task, whole(TASKS[task][1])).with_format("torch")[:]
    with torch.no_grad():
        found = [one(**data).logits[..., ids].double() for one in (full, teacher)]
    labels = data["labels"]
    if task == "text-generation":
        found, labels = [one[:, :-1] for one in found], labels[:, 1:]
    student, wanted = ((one / TEMPERATURE).log_softmax(-1) for one in found)
    divergence = (wanted.exp() * (wanted - student)).sum(-1)[labels != -100].mean()
    cross = nn.functional.cross_entropy(found[0].flatten(0, -2), mapped(labels, ids).flatten())
    trainer = train(tmp_path, small, teacher, rows(task, part), part, max_steps=1)
    assert logged(trainer, "loss_prediction") == pytest.approx(
        [float(divergence) * TEMPERATURE**2], rel=1e-4
    )
    assert logged(trainer, "loss_task") == pytest.approx([float(cross)], rel=1e-4)


def mapped(labels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    numbers = {old: new for new, old in enumerate(ids.tolist())} | {-100: -100}
    return labels.clone().apply_(numbers.__getitem__)


def test_decoder_inputs_are_mapped(tmp_path: Path) -> None:
    """Without labels, the target is given as decoder_input_ids, with the student's start token."""
    task = "summarization"
    teacher = model(task, seed=1, layers=2)
    _, small, part = trimmed(task)
    start = small.config.decoder_start_token_id
    assert start != teacher.config.decoder_start_token_id
    data = rows(task, part).remove_columns("labels")
    target = torch.tensor(data["input_ids"])
    target[:, 0] = start
    target[0, 1] = teacher.config.decoder_start_token_id % len(part)
    data = data.add_column("decoder_input_ids", target.tolist())
    options: dict[str, Any] = {"distillation_loss_weight": 1.0, "max_steps": 1}
    run = train(tmp_path, small, teacher, data, part, **options)
    batch = data.with_format("torch")[:]
    ids = VocabularyMap.of(part).ids  # type: ignore[union-attr]
    own = {n: batch[n] if n == "attention_mask" else ids[batch[n]] for n in batch}
    with torch.no_grad():
        wanted = teacher(**own).logits[..., ids]
    found = run.distiller.teacher(batch, run.accelerator)["logits"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("task", ["question-answering", "fill-mask"])
def test_layers_are_compared_as_before(task: str, tmp_path: Path) -> None:
    teacher = model(task, seed=1, layers=2)
    full, small, part = trimmed(task)
    options = {
        "stage": "intermediate",
        "hidden_states_loss_weight": 1.0,
        "attention_loss_weight": 1.0,
        "layer_mapping": "last",
    }
    before = train(tmp_path, full, teacher, rows(task, whole(TASKS[task][1])), None, **options)
    after = train(tmp_path, small, teacher, rows(task, part), part, **options)
    for name in ("loss_hidden_states", "loss_attention"):
        assert logged(after, name) == pytest.approx(logged(before, name), rel=1e-5), name
        assert logged(after, name)


@pytest.mark.parametrize("task", TASKS)
def test_cached_outputs_are_those_of_the_live_teacher(task: str, tmp_path: Path) -> None:
    teacher = model(task, seed=1, layers=2)
    _, small, part = trimmed(task)
    data = rows(task, part)
    stored = cache_teacher_outputs(
        teacher,
        data,
        processing_class=part,
        data_collator=default_data_collator,
        output_dir=tmp_path / "cache",
        dtype="float32",
        use_cpu=True,
    )
    state = {name: weight.clone() for name, weight in small.state_dict().items()}
    live = train(tmp_path, small, teacher, data, part)
    small.load_state_dict(state)
    cached = train(tmp_path, small, None, stored, part)
    for name in ("loss", "loss_prediction"):
        assert logged(cached, name) == pytest.approx(logged(live, name), rel=1e-4), name
    with pytest.raises(ValueError, match="tokenizer"):
        train(tmp_path, small, None, stored, trim_other(task)[1])


def trim_other(task: str) -> tuple[Any, Any]:
    return trim_vocabulary(model(task, seed=0), whole(TASKS[task][1]), ["Many people"])


def test_several_teachers(tmp_path: Path) -> None:
    task = "fill-mask"
    teachers = [model(task, seed=seed, layers=2) for seed in (1, 2)]
    _, small, part = trimmed(task)
    data = rows(task, part)
    options = {"dtype": "float32", "use_cpu": True, "data_collator": default_data_collator}
    stored = cache_teacher_outputs(
        teachers, data, processing_class=part, output_dir=tmp_path / "cache", **options
    )
    state = {name: weight.clone() for name, weight in small.state_dict().items()}
    live = train(tmp_path, small, teachers, data, part)
    small.load_state_dict(state)
    cached = train(tmp_path, small, None, stored, part)
    assert logged(cached, "loss_prediction") == pytest.approx(
        logged(live, "loss_prediction"), rel=1e-4
    )


def test_the_map_is_in_the_hash_of_the_tokenizer() -> None:
    _, _, part = trimmed("fill-mask")
    before = tokenizer_hash(part)
    found = VocabularyMap.of(part)
    assert found is not None
    VocabularyMap([*found.ids.tolist()[:-1], int(found.ids[-1]) + 1], found.size).store(part)
    assert tokenizer_hash(part) != before


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def finding(report: Any) -> tuple[str, str]:
    return next((f.status, f.message) for f in report.findings if f.about == "tokenizer")


def test_check_pair_by_folders(tmp_path: Path) -> None:
    task = "fill-mask"
    _, small, part = trimmed(task)
    teacher = saved(tmp_path / "teacher", model(task, seed=1), whole("byte_level"))
    student = saved(tmp_path / "student", small, part)
    batch = rows(task, part).with_format("torch")[:]
    report = check_pair(teacher, student, batches=[batch])
    assert report.ok
    status, message = finding(report)
    assert status == "ok" and str(len(part)) in message
    assert not any("first" in f.message for f in report.findings)
    assert "vocabulary" not in {f.about for f in report.findings}
    # By the same answers as the teacher gives with its own ids.
    ids = VocabularyMap.of(part).ids  # type: ignore[union-attr]
    own = rows(task, whole("byte_level")).with_format("torch")[:]
    with torch.no_grad():
        answers = model(task, seed=1)(**own).logits[..., ids].argmax(-1)
    labels = batch["labels"]
    right = (answers == labels)[labels != -100].double().mean()
    quality = next(f.message for f in report.findings if f.about == "quality")
    assert f"{float(right):.1%}" in quality


def test_a_student_as_teacher_of_another_needs_no_map(tmp_path: Path) -> None:
    task = "fill-mask"
    _, small, part = trimmed(task)
    _, other, _ = trimmed(task)
    report = check_pair(small, other, processing_class=part)
    assert report.ok
    assert "mapped" not in finding(report)[1]
    train(tmp_path, other, small, rows(task, part), part, max_steps=1)


def refusal(teacher: Any, student: Any, tokenizer: Any) -> str:
    report = check_pair(teacher, student, processing_class=tokenizer)
    status, message = finding(report)
    assert status == "error", message
    return message


def test_wrong_maps_are_refused(tmp_path: Path) -> None:
    task = "fill-mask"
    teacher = model(task, seed=1)
    full, small, part = trimmed(task)
    other, others = trim_other(task)
    assert "processing_class" in refusal(teacher, small, others)
    assert "processing_class" in refusal(teacher, small, whole("byte_level"))
    assert "processing_class" in refusal(teacher, full, part)
    assert f"{teacher.config.vocab_size + 8}" in refusal(
        model(task, seed=1, vocab_size=teacher.config.vocab_size + 8), small, part
    )
    # A teacher whose tokenizer is at hand, and is another one, is not read through the map.
    foreign = saved(tmp_path / "teacher", teacher, KINDS["unigram"]())
    status, message = finding(check_pair(foreign, small, processing_class=part))
    assert status == "ok" and "one piece on both sides" in message
    vocabulary = VocabularyMap.of(part)
    assert vocabulary is not None
    with pytest.raises(ValueError, match="was the id"):
        check_map(vocabulary, KINDS["unigram"](), part, [])
    part.add_tokens(["<new>"])
    assert "added" in refusal(teacher, small, part)
    assert other.config.vocab_size != small.config.vocab_size


def test_a_teacher_that_lower_cases_is_refused(tmp_path: Path) -> None:
    task = "multiple-choice"
    teacher = model(task, seed=1)
    probe = "The quick brown fox jumps over 13 lazy dogs."
    student, part = trim_vocabulary(model(task, seed=0), whole("word_piece"), [probe])
    cased = deepcopy(whole("word_piece"))
    cased.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    folder = saved(tmp_path / "teacher", teacher, cased)
    with pytest.raises(ValueError, match="quick brown fox"):
        train(tmp_path, student, folder, rows(task, whole("word_piece")), part)
    # With its own encoding of the choices next to the student's it could teach.
    assert "reads its own encoding" in finding(check_pair(folder, student))[1]


def test_training_from_folders_and_what_it_saves(tmp_path: Path) -> None:
    """The map goes where the tokenizer goes: a second stage starts from the first one's folder."""
    task = "fill-mask"
    _, small, part = trimmed(task)
    teacher = saved(tmp_path / "teacher", model(task, seed=1), whole("byte_level"))
    first = train(tmp_path / "run", small, teacher, rows(task, part), part, max_steps=1)
    first.save_model(tmp_path / "stage")
    read = AutoTokenizer.from_pretrained(tmp_path / "stage")
    found, wanted = VocabularyMap.of(read), VocabularyMap.of(part)
    assert found is not None and wanted is not None and found.mark == wanted.mark
    assert check_pair(teacher, tmp_path / "stage").ok


def test_in_memory_the_student_knows_its_tokenizer(tmp_path: Path) -> None:
    task = "text-classification"
    _, small, part = trimmed(task)
    train(tmp_path, small, model(task, seed=1), rows(task, part), None, max_steps=1)
