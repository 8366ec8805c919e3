"""A column of predictions teaches as the model that made them would."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import arguments, distil, logged
from tiny import bert_config, dataset_for, model_for
from torch import Tensor
from transformers import BertForSequenceClassification, default_data_collator
from zoo import zoo_dataset, zoo_model

from hf_distill import DistillationTrainer, load_teacher_column
from hf_distill.losses import LOGITS_LOSSES
from hf_distill.losses.logits import kl_div
from hf_distill.teachers.columns import SignalDescription
from hf_distill.teachers.columns.cells import CellReader

NAMES = ("ja", "Nein", "vielleicht")
MULTI = "multi_label_classification"


def student(**options: Any) -> Any:
    return model_for("text-classification", seed=0, id2label=dict(enumerate(NAMES)), **options)


def table(cells: list[Any]) -> Dataset:
    return dataset_for("text-classification", len(cells)).add_column("teacher", cells)


def stored(cells: list[Any], model: Any = None, **options: Any) -> np.ndarray:
    data = load_teacher_column(table(cells), "teacher", model or student(), **options)
    return np.array(data["teacher_logits"], dtype=np.float64)


def read(cells: list[Any], names: tuple[str, ...] = NAMES, **options: Any) -> Tensor:
    """Logits of cells, without a data set."""
    reader = CellReader(
        **{"column": "c", "kind": "probabilities", "names": names, "problem": "one label"} | options
    )
    return torch.from_numpy(reader.logits([(f"Row {n}", cell) for n, cell in enumerate(cells)]))


@pytest.mark.parametrize("number", [Decimal, np.float16, np.float32, Fraction])
def test_numbers_of_any_type_are_read(number: Any) -> None:
    cells = [{"ja": number(1), "Nein": number(0), "vielleicht": number(0)}]
    assert read(cells).exp().tolist() == [[1.0, 0.0, 0.0]]
    nan = float("nan") if number is Fraction else number("nan")
    with pytest.raises(ValueError, match="Row 0.*NaN.*'ja'"):
        read([{**cells[0], "ja": nan}])


DISTRIBUTIONS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).dirichlet(np.full(3, 0.5), 4)
)


@settings(deadline=None, max_examples=40)
@given(p=DISTRIBUTIONS, temperature=st.floats(0.25, 20), order=st.permutations(range(3)))
def test_every_layout_and_kind_gives_the_same_loss(
    p: np.ndarray, temperature: float, order: list[int]
) -> None:
    p = np.maximum(p, 1e-9)
    p /= p.sum(axis=1, keepdims=True)
    logits = torch.randn(4, 3, dtype=torch.float64)
    log, names = np.log(p), [NAMES[n] for n in order]
    shuffled = [[float(row[n]) for n in order] for row in p]
    layouts: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "object": ([dict(zip(names, row, strict=True)) for row in shuffled], {}),
        "other case": (
            [{k.upper(): v for k, v in zip(names, row, strict=True)} for row in shuffled],
            {},
        ),
        "list": (shuffled, {"class_names": names}),
        "pipeline": (
            [
                [{"label": n, "score": s} for n, s in zip(names, row, strict=True)]
                for row in shuffled
            ],
            {},
        ),
        "top": ([{"labels": names, "scores": row} for row in shuffled], {}),
        "all but one": ([{"labels": names[:2], "scores": row[:2]} for row in shuffled], {}),
        "not quite 1": (
            [{k: 1.004 * v for k, v in zip(names, row, strict=True)} for row in shuffled],
            {},
        ),
        "logs": (
            [dict(zip(NAMES, row, strict=True)) for row in log.tolist()],
            {"kind": "log_probabilities"},
        ),
        "logits": (
            [dict(zip(NAMES, row, strict=True)) for row in (log + 3.5).tolist()],
            {"kind": "logits"},
        ),
    }  # fmt: skip
    # Closed form: the softened teacher is p^(1/T), normalised.
    soft = torch.from_numpy(p ** (1 / temperature))
    soft /= soft.sum(dim=1, keepdim=True)
    log_q = (logits / temperature).log_softmax(dim=1)
    wanted = temperature**2 * (soft * (soft.log() - log_q)).sum(dim=1)
    for name, (cells, options) in layouts.items():
        found = kl_div(logits, read(cells, **options), temperature=temperature)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("name", [name for name in LOGITS_LOSSES if name != "mse"])
@pytest.mark.parametrize("several", [False, True])
def test_zeros_are_exact_and_no_loss_is_nan(name: str, several: bool) -> None:
    cells = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    problem = "several labels" if several else "one label"
    teacher = read(cells, class_names=NAMES, problem=problem).float()
    logits = torch.randn(2, 3, requires_grad=True)
    if several:
        teacher, shown = (torch.stack((z, torch.zeros_like(z)), -1) for z in (teacher, logits))
    else:
        shown = logits
    for temperature in (0.5, 1.0, 8.0):
        loss = LOGITS_LOSSES[name](shown, teacher, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert not loss.isnan().any() and gradient.isfinite().all()
    p = teacher.clamp(min=-1e30).softmax(-1)
    assert torch.equal(p[..., 0] if several else p, torch.tensor(cells))


def test_the_rest_of_a_short_list_is_shared_out_evenly() -> None:
    names = tuple("abcde")
    found = read([[{"label": "d", "score": 0.6}, {"label": "a", "score": 0.1}]], names)
    assert found.exp()[0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.6, 0.1])
    found = read([{"labels": ["d"], "scores": [0.0]}], names, kind="log_probabilities")
    assert found.exp()[0].tolist() == [0, 0, 0, 1, 0]


def test_probabilities_of_several_labels_are_log_odds() -> None:
    p = [[0.9, 0.2, 0.5]]
    wanted = [np.log(x / (1 - x)) for x in p[0]]
    assert stored(p, student(problem_type=MULTI), class_names=NAMES)[0] == pytest.approx(wanted)
    log = np.log(p).tolist()
    options = {"class_names": NAMES, "teacher_column_kind": "log_probabilities"}
    assert stored(log, student(problem_type=MULTI), **options)[0] == pytest.approx(wanted, abs=1e-6)


def test_numbers_to_predict() -> None:
    model = BertForSequenceClassification(bert_config(num_labels=1))
    assert stored([1.5, -2, 1e4], model).ravel().tolist() == [1.5, -2, 1e4]
    assert stored(["1.5", "[-2]", " 3 "], model).ravel().tolist() == [1.5, -2, 3]


def test_json_text_and_numbers_of_labels() -> None:
    wanted = np.log([[0.2, 0.3, 0.5]])
    cells = ['{"Nein": 0.3, "ja": 0.2, "vielleicht": 0.5}']
    assert stored(cells) == pytest.approx(wanted, abs=1e-6)
    numbered = [{"labels": [1, 2, 0], "scores": [0.3, 0.5, 0.2]}]
    assert stored(numbered, class_names=NAMES) == pytest.approx(wanted, abs=1e-6)
    unnamed = model_for("text-classification", seed=0)
    assert stored([[0.2, 0.3, 0.5]], unnamed) == pytest.approx(wanted, abs=1e-6)
    assert stored([{"0": 0.2, "1": 0.3, "2": 0.5}], unnamed) == pytest.approx(wanted, abs=1e-6)


def test_numbers_that_are_names_are_never_places() -> None:
    names = ("1", "2", "3")
    cells = [{"labels": [one], "scores": [1.0]} for one in (1, 2, 3)]
    assert read(cells, names, class_names=names[::-1]).exp().tolist() == np.eye(3).tolist()
    with pytest.raises(ValueError, match="Row 0.*the label 0,.*1, 2, 3"):
        read([{"labels": [0], "scores": [1.0]}, *cells], names, class_names=names)


@pytest.mark.parametrize(
    "cell",
    [
        {"sequence": "a text", "labels": ["vielleicht", "ja", "Nein"], "scores": [0.5, 0.2, 0.3]},
        [{"label": n, "score": p, "rank": 1} for n, p in zip(NAMES, (0.2, 0.3, 0.5), strict=True)],
        [{"label": "ja", "score": 0.2, "rank": 3}, {"label": "Nein", "score": 0.3}],
    ],
)
def test_other_keys_of_a_pipeline_are_not_read(cell: Any) -> None:
    assert read([cell]).exp()[0].tolist() == pytest.approx([0.2, 0.3, 0.5])


def test_an_object_of_numbers_may_have_labels_called_label_and_score() -> None:
    names = ("label", "score", "rank")
    cell = {"label": 0.2, "score": 0.3, "rank": 0.5}
    assert read([cell], names).exp()[0].tolist() == pytest.approx([0.2, 0.3, 0.5])


TASKS = [
    ("text-classification", "bert"),
    ("token-classification", "bert"),
    ("multiple-choice", "bert"),
    ("image-classification", "vit"),
    ("audio-classification", "wav2vec2"),
]


def own_column(task: str, teacher: Any, data: Dataset, shuffled: bool) -> list[Any]:
    """The teacher's probabilities, by name; for tokens those that have a label."""
    batch = default_data_collator(data.to_list())
    labels = batch.pop("labels")
    with torch.no_grad():
        p = teacher.eval()(**batch).logits.double().softmax(dim=-1)
    if task == "multiple-choice":
        return p.tolist()
    names = list(teacher.config.id2label.values())
    named = [[{"label": n, "score": s} for n, s in zip(names, row, strict=True)]
             for row in p.reshape(-1, len(names)).tolist()]  # fmt: skip
    named = [sorted(row, key=lambda one: one["label"]) for row in named]
    if task != "token-classification":
        return named
    length = labels.shape[1]
    return [
        [named[row * length + token] for token in np.flatnonzero(labels[row] != -100)]
        for row in range(len(labels))
    ]


@pytest.mark.parametrize(("task", "architecture"), TASKS)
def test_a_live_teacher_equals_its_own_column(task: str, architecture: str, tmp_path: Path) -> None:
    teacher = zoo_model(task, architecture, seed=1, layers=2)
    data = zoo_dataset(task, 8)
    cells = own_column(task, teacher, data, True)
    column = data.add_column("teacher", cells if task != "token-classification" else
                             [json.dumps(cell) for cell in cells])  # fmt: skip
    runs = []
    for source in ("live", "column"):
        model = zoo_model(task, architecture, seed=0)
        train = data
        if source == "column":
            options = {"data_collator": default_data_collator}
            train = load_teacher_column(column, "teacher", model, **options)
        runs.append(
            distil(
                task,
                tmp_path,
                student=model,
                teacher=teacher if source == "live" else None,
                train_dataset=train,
                trainer_options={"data_collator": default_data_collator},
                distillation_loss_weight=0.6,
                temperature=2.0,
                optim="sgd",
                learning_rate=1e-2,
            )[0]
        )
    live, learned = runs
    assert logged(learned, "loss_prediction") == pytest.approx(
        logged(live, "loss_prediction"), rel=1e-4
    )
    assert min(logged(live, "loss_prediction")) > 1e-3
    for one, other in zip(live.model.parameters(), learned.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_words_that_are_cut_off_are_left_out() -> None:
    model = zoo_model("token-classification", "bert", seed=0)
    data = Dataset.from_dict(
        {
            "input_ids": [[3, 7, 8, 9], [3, 7, 8, 9]],
            "labels": [[-100, 0, 0, -100], [-100, 0, -100, -100]],
            "words": [[0, 2], [1]],
            "teacher": [[[0.5, 0.25, 0.25], [1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]]],
        }
    )
    found = load_teacher_column(data, "teacher", model, class_names=["no", "maybe", "yes"])
    assert [np.exp(row).round(6).tolist() for row in found["teacher_logits"]] == [
        [0.5, 0.25, 0.25, 0, 1, 0],
        [0, 0, 1],
    ]


def test_rows_without_labels_learn_from_the_column_alone(tmp_path: Path) -> None:
    data = table([{"ja": 0.2, "Nein": 0.3, "vielleicht": 0.5}] * 8).remove_columns("labels")
    model = student()
    data = load_teacher_column(data, "teacher", model)
    trainer, _ = distil(
        "text-classification", tmp_path, student=model, teacher=None, train_dataset=data,
        distillation_loss_weight=1.0,
    )  # fmt: skip
    assert logged(trainer, "loss_prediction")[-1] > 0


def test_another_order_of_labels_is_matched_by_name(tmp_path: Path) -> None:
    """Rows read for one student teach another, whose labels are numbered otherwise."""
    data = load_teacher_column(
        table([{"ja": 0.7, "Nein": 0.2, "vielleicht": 0.1}] * 4).remove_columns("labels"),
        "teacher",
        student(),
    )
    other = model_for("text-classification", seed=0, id2label=dict(enumerate(reversed(NAMES))))
    trainer = DistillationTrainer(
        other, args=arguments(tmp_path, distillation_loss_weight=1.0), train_dataset=data
    )
    trainer.check()
    head = trainer.distiller.head
    assert head is not None and head.teacher_order == [2, 1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cell", "options", "model", "refused"),
    [
        ([0.2, 0.3, 0.5], {}, {}, True),
        ([0.2, 0.3, 0.5], {"teacher_column_kind": "logits"}, {}, False),
        ([-np.inf, 0.3, 0.5], {"teacher_column_kind": "logits"}, {}, True),
        ([0.2, 0.3, 0.5], {}, {"problem_type": MULTI}, False),
        ([1.0, 0.3, 0.5], {}, {"problem_type": MULTI}, True),
    ],
)
def test_mse_needs_finite_logits(
    cell: list[float], options: Any, model: Any, refused: bool, tmp_path: Path
) -> None:
    taught = student(**model)
    data = table([cell] * 4).remove_columns("labels")
    data = load_teacher_column(data, "teacher", taught, class_names=NAMES, **options)
    args = arguments(tmp_path, distillation_loss="mse", distillation_loss_weight=1.0)
    if refused:
        with pytest.raises(ValueError, match="distillation_loss='mse'.*'teacher'"):
            DistillationTrainer(taught, args=args, train_dataset=data)
    else:
        DistillationTrainer(taught, args=args, train_dataset=data).check()


def test_the_columns_know_that_they_are_a_column() -> None:
    cells = [{"ja": 0.2, "Nein": 0.3, "vielleicht": 0.5}] * 2
    data = load_teacher_column(table(cells), "teacher", student())
    assert data.column_names[-2:] == ["teacher_logits", "teacher_checksum"]
    assert "teacher" not in data.column_names
    found = SignalDescription.of(data)
    assert found is not None and found.teacher == "the column 'teacher'"
    again = load_teacher_column(table(cells[::-1]), "teacher", student())
    assert SignalDescription.of(again) == found
    other = load_teacher_column(
        table([*cells[:1], {**cells[0], "ja": 0.201}]), "teacher", student()
    )
    assert SignalDescription.of(other).weights != found.weights  # type: ignore[union-attr]
