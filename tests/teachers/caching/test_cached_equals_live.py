"""Training from cached outputs is training with the live teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from optuna.samplers import GridSampler
from runs import arguments, distil, logged
from tiny import tokenizer
from transformers import DataCollatorForLanguageModeling, default_data_collator
from zoo import PAIRS, zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, cache_teacher_outputs

ROWS = 16


def cached(data: Dataset, teacher: Any, folder: Path, **options: Any) -> Dataset:
    return cache_teacher_outputs(
        teacher,
        data,
        output_dir=folder,
        **{
            "data_collator": default_data_collator,
            "dtype": "float32",
            "batch_size": 3,
            "use_cpu": True,
            **options,
        },
    )


def train(
    task: str, architecture: str, path: Path, data: Dataset, teacher: Any, **options: Any
) -> Any:
    trainer, _ = distil(
        task,
        path,
        student=zoo_model(task, architecture, seed=0),
        teacher=teacher,
        train_dataset=data,
        **{
            "trainer_options": {"data_collator": default_data_collator},
            "max_steps": 4,
            "distillation_loss_weight": 0.6,
            "temperature": 2.0,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "optim": "sgd",
            **options,
        },
    )
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(("task", "architecture"), PAIRS)
def test_every_architecture_learns_the_same(task: str, architecture: str, tmp_path: Path) -> None:
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task, ROWS)
    live = train(task, architecture, tmp_path, data, teacher)
    stored = cached(data, teacher, tmp_path / "cache")
    from_cache = train(task, architecture, tmp_path, stored, None)
    assert from_cache.teacher_model is None
    for part in ("loss", "loss_task", "loss_prediction"):
        assert logged(from_cache, part) == pytest.approx(logged(live, part), rel=1e-4), part
    assert min(logged(live, "loss_prediction")) > 1e-3
    assert torch.allclose(weights(from_cache), weights(live), rtol=1e-3, atol=1e-4)


QA = ("question-answering", "bert")
Change = Callable[[Dataset, Path], Any]


def through_disk(data: Dataset, folder: Path) -> Dataset:
    data.save_to_disk(folder / "saved")
    return Dataset.load_from_disk(folder / "saved")


def through_parquet(data: Dataset, folder: Path) -> Dataset:
    data.to_parquet(folder / "rows.parquet")
    return Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "read"))


def mapped_stream(data: Dataset, folder: Path) -> Any:
    stream = data.to_iterable_dataset()
    features = Features({**stream.features, "extra": Value("int64")})
    return stream.map(lambda row: {"extra": 1}, features=features)


def test_a_stream_that_lost_the_meaning_of_its_columns_is_refused(tmp_path: Path) -> None:
    stored = cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "cache")
    mapped = stored.to_iterable_dataset().map(lambda row: {"extra": 1})
    with pytest.raises(ValueError, match=r"map drops it. Pass map .*features=Features"):
        train(*QA, tmp_path, mapped, None)


CHANGES: dict[str, Change] = {
    "shuffled": lambda data, folder: data.shuffle(seed=3),
    "selected": lambda data, folder: data.select([9, 2, 2, 14, 0, 5, 1, 11]),
    "filtered": lambda data, folder: data.filter(lambda row: row["input_ids"][1] % 2 == 0),
    "mapped": lambda data, folder: data.map(lambda row: {"extra": len(row["input_ids"])}),
    "as tensors": lambda data, folder: data.with_format("torch"),
    "sharded": lambda data, folder: concatenate_datasets([data.shard(2, 1), data.shard(2, 0)]),
    "streamed": lambda data, folder: data.to_iterable_dataset(),
    "streamed and mapped": mapped_stream,
    "saved": through_disk,
    "as Parquet": through_parquet,
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_keep_their_own_whatever_is_done_to_the_data(change: str, tmp_path: Path) -> None:
    teacher = zoo_model(*QA, seed=1, layers=2)
    stored = CHANGES[change](cached(zoo_dataset(QA[0]), teacher, tmp_path / "cache"), tmp_path)
    columns = [name for name in stored.column_names if name.startswith("teacher_")]
    live = train(*QA, tmp_path, stored.remove_columns(columns), teacher)
    from_cache = train(*QA, tmp_path, stored, None)
    assert logged(from_cache, "loss_prediction") == pytest.approx(
        logged(live, "loss_prediction"), rel=1e-4
    )


def test_workers_that_load_the_data(tmp_path: Path) -> None:
    stored = cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "cache")
    alone = train(*QA, tmp_path, stored, None)
    with_workers = train(*QA, tmp_path, stored, None, dataloader_num_workers=2)
    assert logged(with_workers, "loss") == logged(alone, "loss")


def test_rows_mixed_up_with_another_rows_outputs_are_refused(tmp_path: Path) -> None:
    stored = cached(zoo_dataset(QA[0]), zoo_model(*QA, seed=1), tmp_path / "cache")
    inputs = [name for name in stored.column_names if not name.startswith("teacher_")]
    lengths = [sum(mask) for mask in stored["attention_mask"]]
    first = next(i for i, n in enumerate(lengths) if lengths.count(n) > 1)
    second = lengths.index(lengths[first], first + 1)
    other_length = next(i for i, n in enumerate(lengths) if n != lengths[first])
    for partner, message in ((second, "do not belong to its input"), (other_length, "positions")):
        rows = stored.select([first, partner])
        swapped = rows.remove_columns(inputs).select([1, 0])
        wrong = concatenate_datasets([rows.select_columns(inputs), swapped], axis=1)
        with pytest.raises(ValueError, match=message):
            train(*QA, tmp_path, wrong, None)


@pytest.mark.parametrize("task", ["question-answering", "token-classification", "text-generation"])
def test_accumulation_changes_nothing(task: str, tmp_path: Path) -> None:
    architecture = dict(PAIRS)[task]
    stored = cached(zoo_dataset(task), zoo_model(task, architecture, seed=1), tmp_path / "cache")
    options = {"max_steps": 1, "train_sampling_strategy": "sequential"}
    runs = [
        train(
            task,
            architecture,
            tmp_path,
            stored,
            None,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=16 // size,
            **options,
        )
        for size in (16, 4)
    ]
    assert logged(runs[1], "loss") == pytest.approx(logged(runs[0], "loss"), rel=1e-5)
    assert torch.allclose(weights(runs[1]), weights(runs[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_by_the_collator_moves_outputs_with_their_tokens(side: str, tmp_path: Path) -> None:
    """Rows of different lengths, padded to the longest of a batch, on either side.

    (A model with absolute positions, such as GPT-2, sees other positions where it is padded on the
    left, so its own outputs depend on the batch; Llama's do not.)
    """
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (ROWS,), generator=random).tolist()
    ids = [torch.randint(5, 90, (n,), generator=random).tolist() for n in lengths]
    words = tokenizer()
    words.padding_side = side
    teacher = zoo_model("text-generation", "llama", seed=1, layers=2)
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * n for n in lengths]})
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    options: Any = {
        "distillation_loss_weight": 1.0,
        "trainer_options": {"data_collator": collator, "processing_class": words},
    }
    live = train("text-generation", "llama", tmp_path, data, teacher, **options)
    stored = cached(
        data, teacher, tmp_path / "cache", data_collator=collator, processing_class=words
    )
    from_cache = train("text-generation", "llama", tmp_path, stored, None, **options)
    assert logged(from_cache, "loss") == pytest.approx(logged(live, "loss"), rel=1e-4)


def test_float16_is_within_its_rounding(tmp_path: Path) -> None:
    """A divergence moves by its gradient times the error of the logits, 2^-11 of each at most."""
    for task, architecture in (QA, ("text-classification", "bert"), ("text-generation", "llama")):
        teacher = zoo_model(task, architecture, seed=1, layers=2)
        data = zoo_dataset(task)
        live = train(task, architecture, tmp_path, data, teacher)
        for dtype, bound in (("float16", 2e-3), ("bfloat16", 2e-2)):
            stored = cached(data, teacher, tmp_path / f"{task}-{dtype}", dtype=dtype)
            found = logged(train(task, architecture, tmp_path, stored, None), "loss_prediction")
            expected = logged(live, "loss_prediction")
            assert found == pytest.approx(expected, rel=bound), dtype
            assert found != expected


def test_what_is_stored_is_the_number_itself(tmp_path: Path) -> None:
    """The stored logits, against a forward pass of each row alone."""
    teacher = zoo_model(*QA, seed=1, layers=2).eval()
    data = zoo_dataset(QA[0])
    stored = cached(data, teacher, tmp_path / "cache")
    names = ("input_ids", "attention_mask", "token_type_ids")
    for row in stored:
        length = sum(row["attention_mask"])
        with torch.no_grad():
            alone = teacher(**{name: torch.tensor([row[name][:length]]) for name in names})
        both = torch.stack((alone.start_logits[0], alone.end_logits[0]), dim=-1).flatten()
        assert torch.allclose(torch.tensor(row["teacher_logits"]), both, rtol=1e-4, atol=1e-4)
    again = cached(data, teacher, tmp_path / "bf16", dtype="bfloat16")
    bits = np.array(again[0]["teacher_logits"], dtype=np.uint16).astype(np.uint32) << 16
    assert bits.view(np.float32) == pytest.approx(stored[0]["teacher_logits"], rel=2**-8)


def test_hidden_states_teach_the_first_stage_without_the_teacher(tmp_path: Path) -> None:
    teacher = zoo_model(*QA, seed=1, layers=4)
    data = zoo_dataset(QA[0], labels=False)
    options: Any = {"stage": "intermediate"}
    live = train(*QA, tmp_path, data, teacher, **options)
    stored = cached(data, teacher, tmp_path / "cache", hidden_layers=[4, 0])
    from_cache = train(*QA, tmp_path, stored, None, **options)
    assert logged(from_cache, "loss_hidden_states") == pytest.approx(
        logged(live, "loss_hidden_states"), rel=1e-5
    )
    assert torch.allclose(weights(from_cache), weights(live), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="layer 3, but the cached outputs have .* layers 4, 0"):
        train(*QA, tmp_path, stored, None, **options, layer_mapping="0:0,1:3")
    with pytest.raises(ValueError, match="layer_mapping='auto' looks at all layers"):
        train(*QA, tmp_path, stored, None, **options, layer_mapping="auto")
    with pytest.raises(ValueError, match="attention_loss_weight=0"):
        train(*QA, tmp_path, stored, None, stage="intermediate", attention_loss="scores")
    without = cached(data, teacher, tmp_path / "logits alone")
    with pytest.raises(ValueError, match="cache them with hidden_layers"):
        train(*QA, tmp_path, without, None, **options)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("multiple-choice", "bert"),
        ("token-classification", "distilbert"),
        ("text-generation", "llama"),
        ("image-classification", "vit"),
        ("audio-classification", "wav2vec2"),
    ],
)
def test_hidden_states_of_every_kind_of_input(task: str, architecture: str, tmp_path: Path) -> None:
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task)
    live = train(task, architecture, tmp_path, data, teacher, stage="intermediate", max_steps=2)
    stored = cached(data, teacher, tmp_path / "cache", hidden_layers=[0, 2])
    from_cache = train(
        task, architecture, tmp_path, stored, None, stage="intermediate", max_steps=2
    )
    expected = logged(live, "loss_hidden_states")
    assert logged(from_cache, "loss_hidden_states") == pytest.approx(expected, rel=1e-5)


def test_hidden_states_of_an_encoder_with_a_decoder_are_refused(tmp_path: Path) -> None:
    teacher = zoo_model("summarization", "t5", seed=1)
    with pytest.raises(
        ValueError, match=r"hidden_layers=\[1\]: the teacher returns no hidden_states"
    ):
        cached(zoo_dataset("summarization"), teacher, tmp_path / "cache", hidden_layers=[1])


def test_evaluation_uses_columns_where_there_are_any(tmp_path: Path) -> None:
    teacher = zoo_model(*QA, seed=1, layers=2)
    data = zoo_dataset(QA[0])
    stored = cached(data, teacher, tmp_path / "cache")
    trainer = train(*QA, tmp_path, stored, None)
    with_columns = trainer.evaluate(stored)
    without = trainer.evaluate(data)
    assert without["eval_loss"] == pytest.approx(with_columns["eval_loss"], rel=1e-6)
    assert "eval_loss_prediction" not in without
    live = train(*QA, tmp_path, data, teacher)
    live.model.load_state_dict(trainer.model.state_dict())
    expected = live.evaluate(data)["eval_loss_prediction"]
    assert with_columns["eval_loss_prediction"] == pytest.approx(expected, rel=1e-4)
    unlabelled = zoo_dataset(QA[0], labels=False)
    assert trainer.predict(unlabelled).predictions[0].shape == (ROWS, 12)
    stored_unlabelled = cached(unlabelled, teacher, tmp_path / "unlabelled")
    assert trainer.predict(stored_unlabelled).predictions[0].shape == (ROWS, 12)


def test_with_weight_0_it_is_a_plain_trainer(tmp_path: Path) -> None:
    data = zoo_dataset(QA[0])
    stored = cached(data, zoo_model(*QA, seed=1), tmp_path / "cache")
    plain = train(*QA, tmp_path, data, None, distillation_loss_weight=0.0)
    from_cache = train(*QA, tmp_path, stored, None, distillation_loss_weight=0.0)
    assert torch.equal(weights(from_cache), weights(plain))


def test_labels_in_another_order_are_put_right(tmp_path: Path) -> None:
    teacher = zoo_model("text-classification", "bert", seed=1)
    names = ("yes", "no", "maybe")
    teacher.config.id2label = dict(enumerate(names))
    teacher.config.label2id = {name: i for i, name in enumerate(names)}
    data = zoo_dataset("text-classification")
    live = train("text-classification", "bert", tmp_path, data, teacher)
    stored = cached(data, teacher, tmp_path / "cache")
    from_cache = train("text-classification", "bert", tmp_path, stored, None)
    assert logged(from_cache, "loss") == pytest.approx(logged(live, "loss"), rel=1e-5)


def test_hyperparameter_search_over_one_cache(tmp_path: Path) -> None:
    data = zoo_dataset(QA[0])
    stored = cached(data, zoo_model(*QA, seed=1), tmp_path / "cache")
    trainer = DistillationTrainer(
        model_init=lambda: zoo_model(*QA, seed=0),
        args=arguments(tmp_path, max_steps=1, eval_strategy="no"),
        train_dataset=stored,
        eval_dataset=stored,
        data_collator=default_data_collator,
    )
    temperatures = [1.0, 4.0]
    best = trainer.hyperparameter_search(
        lambda trial: {"temperature": trial.suggest_categorical("temperature", temperatures)},
        compute_objective=lambda metrics: metrics["eval_loss_prediction"],
        n_trials=2,
        direction="minimize",
        backend="optuna",
        sampler=GridSampler({"temperature": temperatures}),
    )
    assert best.hyperparameters["temperature"] in temperatures
    assert trainer.teacher_model is None
