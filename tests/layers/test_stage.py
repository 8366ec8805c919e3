"""The intermediate stage as a training run: what changes, what is saved, how it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from runs import arguments, distil, logged
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import dataset_for, model_for
from torch import Tensor, nn
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import AutoModelForQuestionAnswering, TrainerCallback

from hf_distill import DistillationTrainer
from hf_distill.layers import PROJECTIONS_FILE
from hf_distill.layers.mapping import LayerPair
from hf_distill.layers.projections import Projections
from hf_distill.restoring import rng_states

TASK = "question-answering"
FIRST_STAGE = {"stage": "intermediate", "attention_loss": "scores"}


def narrow(layers: int = 1) -> nn.Module:
    return model_for(TASK, seed=0, layers=layers, width=8)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def test_needs_no_labels_and_leaves_the_head_alone(tmp_path: Path) -> None:
    student = narrow()
    before = weights(student)
    trained, _ = distil(
        TASK, tmp_path, student=student, train_dataset=dataset_for(TASK, labels=False),
        **FIRST_STAGE, weight_decay=0.5, max_steps=5, per_device_train_batch_size=16,
    )  # fmt: skip
    changed = {
        name for name, value in student.state_dict().items() if not torch.equal(value, before[name])
    }
    assert not any(name.startswith("qa_outputs") for name in changed)
    assert "bert.encoder.layer.0.output.dense.weight" in changed
    losses = logged(trained, "loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("options", "weights"), [
    ({}, (0, 0)), ({"attention_loss": "scores"}, (0, 0)),
    ({"stage": "intermediate"}, (1, 0)),
    ({"stage": "intermediate", "attention_loss": "relations"}, (1, 1)),
    ({"stage": "intermediate", "attention_loss": "scores", "attention_loss_weight": 0.0}, (1, 0)),
    ({"stage": "intermediate", "attention_loss_weight": 0.5}, (1, 0.5)),
], ids=str)  # fmt: skip
def test_attentions_are_compared_if_they_are_asked_for(
    options: dict[str, Any], weights: tuple[float, float], tmp_path: Path
) -> None:
    found = arguments(tmp_path, **options).intermediate_weights
    assert (found["hidden_states"], found["attention"]) == weights


def test_a_weight_alone_compares_scores(tmp_path: Path) -> None:
    losses = []
    for options in ({"attention_loss_weight": 1.0}, {"attention_loss": "scores"}, {}):
        trained, _ = distil(TASK, tmp_path, student=narrow(), stage="intermediate", **options)
        losses.append(logged(trained, "loss_attention"))
    assert losses[0] == losses[1] != [] == losses[2]


@pytest.mark.parametrize("options", [
    FIRST_STAGE, {"hidden_states_loss_weight": 1.0},
    {"hidden_states_loss_weight": 1.0, "attention_loss_weight": 1.0},
], ids=str)  # fmt: skip
def test_evaluations_keep_a_loss_whose_weight_a_callback_sets_to_0(
    options: dict[str, Any], tmp_path: Path
) -> None:
    class SetTo0(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.hidden_states_loss_weight = 0.0

    trained, _ = distil(
        TASK, tmp_path, student=narrow(), max_steps=3, eval_strategy="steps", eval_steps=1,
        trainer_options={"callbacks": [SetTo0()], "eval_dataset": dataset_for(TASK, 8)}, **options,
    )  # fmt: skip
    assert len(logged(trained, "loss_hidden_states")) == 1
    assert len(logged(trained, "eval_loss_hidden_states")) == 3


def balance_warnings(path: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    caplog.clear()
    distil(TASK, path, student=narrow(), **FIRST_STAGE, **options)
    return [r.getMessage() for r in caplog.records if "would make them equal" in r.getMessage()]


@pytest.mark.parametrize(("larger", "smaller"), [
    ("attention", "hidden_states"), ("hidden_states", "attention"),
])  # fmt: skip
def test_a_loss_that_drowns_the_other_is_reported_once_with_a_weight_that_balances_them(
    larger: str, smaller: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {f"{larger}_loss_weight": 1e4, f"{smaller}_loss_weight": 1.0}
    (message,) = balance_warnings(tmp_path, caplog, max_steps=3, **weights)
    assert f"loss_{larger} is " in message and "(now 1e+04)" in message
    advice = re.search(rf"{larger}_loss_weight=(\S+)", message)
    assert advice
    weights[f"{larger}_loss_weight"] = float(advice[1])
    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE, **weights)
    parts = [
        weights[f"{n}_loss_weight"] * logged(trained, f"loss_{n}")[0] for n in (larger, smaller)
    ]
    assert parts[0] == pytest.approx(parts[1], rel=0.5)  # one digit is suggested


def test_a_balanced_stage_or_a_single_loss_is_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE)
    hidden, attention = (logged(trained, f"loss_{n}")[0] for n in ("hidden_states", "attention"))
    for times, expected in ((9.0, 0), (11.0, 1)):
        weight = times * hidden / attention
        assert len(balance_warnings(tmp_path, caplog, attention_loss_weight=weight)) == expected
    assert not balance_warnings(tmp_path, caplog, hidden_states_loss_weight=0.0)


def test_labels_do_not_count(tmp_path: Path) -> None:
    runs = []
    for labels in (True, False):
        data = dataset_for(TASK, labels=labels)
        student = narrow()
        distil(TASK, tmp_path, student=student, train_dataset=data, **FIRST_STAGE)
        runs.append(weights(student))
    assert same(*runs)


def test_projections_are_trained_clipped_decayed_and_gone_afterwards(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Watch(DistillationTrainer):
        def _clip_grad_norm(self, model: nn.Module) -> Any:
            norm = super()._clip_grad_norm(model)
            maps = model.distillation_projections
            seen["gradients"] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            seen["in model"] = {id(p) for p in maps.parameters()} <= {
                id(p) for p in model.parameters()
            }
            seen["groups"] = [
                {id(p) for p in group["params"]} & {id(p) for p in maps.parameters()}
                for group in self.optimizer.param_groups
            ]
            seen.setdefault("before", weights(maps))
            seen["after"] = weights(maps)
            return norm

    student = narrow()
    names = set(student.state_dict())
    distil(TASK, tmp_path, student=student, trainer_class=Watch, **FIRST_STAGE,
           max_grad_norm=0.1, weight_decay=0.1, record_gradients=False)  # fmt: skip
    total = torch.cat([g.flatten() for g in seen["gradients"]]).norm()
    assert seen["in model"] and total == pytest.approx(0.1, rel=1e-4)
    decayed, not_decayed = seen["groups"]
    assert (len(decayed), len(not_decayed)) == (2, 2)  # weights, biases
    assert all(not torch.equal(v, seen["after"][k]) for k, v in seen["before"].items())
    assert set(student.state_dict()) == names
    assert not student._forward_hooks


def test_a_checkpoint_has_a_plain_student_and_the_projections_beside_it(tmp_path: Path) -> None:
    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE,
                        save_strategy="steps", save_steps=2, max_steps=2)  # fmt: skip
    checkpoint = tmp_path / "checkpoint-2"
    assert not any("projection" in name for name in load_file(checkpoint / "model.safetensors"))
    _, info = AutoModelForQuestionAnswering.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with safe_open(checkpoint / PROJECTIONS_FILE, framework="pt") as file:
        assert json.loads(file.metadata()["layer_pairs"]) == [[0, 0], [1, 2]]
        assert len(file.keys()) == 4
    trained.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / PROJECTIONS_FILE).exists()


@pytest.mark.parametrize("options", [
    FIRST_STAGE,
    {**FIRST_STAGE, "layer_mapping": "auto"},
    {"hidden_states_loss_weight": 1.0, "attention_loss_weight": 1.0},
], ids=str)  # fmt: skip
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    options: dict[str, Any], tmp_path: Path
) -> None:
    common = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, **options}

    def trainer(folder: str) -> DistillationTrainer:
        return DistillationTrainer(
            model=model_for(TASK, seed=0, layers=2, width=8, hidden_dropout_prob=0.1),
            teacher_model=model_for(TASK, seed=1, layers=4),
            args=arguments(tmp_path / folder, **common),
            train_dataset=dataset_for(TASK),
        )

    whole = trainer("whole")
    whole.train()
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole.model), weights(resumed.model))
    files = [tmp_path / run / "checkpoint-4" / PROJECTIONS_FILE for run in ("whole", "resumed")]
    assert same(load_file(files[0]), load_file(files[1]))
    assert len(load_file(files[0])) == 4


def test_a_resumed_run_keeps_its_layer_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` would look at another student by then."""
    options = {**FIRST_STAGE, "layer_mapping": "auto", "save_strategy": "steps"}
    pairs = [LayerPair(0, 0), LayerPair(1, 1)]
    files = []
    for steps, checkpoint in ((2, None), (4, str(tmp_path / "checkpoint-2"))):
        monkeypatch.setattr(
            "hf_distill.layers.distillation.suggest_layer_pairs",
            lambda similarity, found=tuple(pairs): list(found),
        )
        trainer = DistillationTrainer(
            model=narrow(), teacher_model=model_for(TASK, seed=1), train_dataset=dataset_for(TASK),
            args=arguments(tmp_path, max_steps=steps, save_steps=2, **options),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        with safe_open(tmp_path / f"checkpoint-{steps}" / PROJECTIONS_FILE, "pt") as file:
            files.append(json.loads(file.metadata()["layer_pairs"]))
        pairs = [LayerPair(0, 0), LayerPair(1, 2)]
    assert files == [[[0, 0], [1, 1]]] * 2


@pytest.mark.parametrize("damage", ["missing", "truncated", "other widths"])
def test_a_checkpoint_without_its_projections_is_refused(damage: str, tmp_path: Path) -> None:
    distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE, save_strategy="steps",
           save_steps=2, max_steps=2)  # fmt: skip
    file = tmp_path / "checkpoint-2" / PROJECTIONS_FILE
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    else:
        save_file({"maps.a": torch.zeros(3)}, file, metadata={"layer_pairs": "[[0, 0]]"})
    again = DistillationTrainer(
        model=narrow(), teacher_model=model_for(TASK, seed=1), train_dataset=dataset_for(TASK),
        args=arguments(tmp_path, **FIRST_STAGE, max_steps=4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=PROJECTIONS_FILE):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert not again.model._forward_hooks


def test_evaluation_has_the_same_losses_and_compute_metrics_sees_logits(tmp_path: Path) -> None:
    data, seen = dataset_for(TASK), []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {}

    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE, max_steps=1,
                        train_dataset=data, per_device_train_batch_size=16, learning_rate=0.0,
                        per_device_eval_batch_size=16,
                        trainer_options={"compute_metrics": compute_metrics})  # fmt: skip
    metrics = trained.evaluate(data)
    for name in ("loss", "loss_hidden_states", "loss_attention"):
        assert metrics[f"eval_{name}"] == pytest.approx(logged(trained, name)[0], rel=1e-5)
    assert [logits.shape for logits in seen[0].predictions] == [(16, 24), (16, 24)]
    trained.args.eval_with_teacher = False  # there is no other loss
    unlabelled = trained.evaluate(dataset_for(TASK, labels=False))
    assert unlabelled["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)


def test_evaluation_without_labels_where_only_layers_are_mixed_in(tmp_path: Path) -> None:
    trained, _ = distil(TASK, tmp_path, student=narrow(), max_steps=1, distillation_loss_weight=0.0,
                        hidden_states_loss_weight=2.0,
                        per_device_eval_batch_size=16)  # fmt: skip
    metrics = trained.evaluate(dataset_for(TASK, labels=False))
    hidden_states = metrics["eval_loss_hidden_states"]
    assert hidden_states > 0 and "eval_loss_task" not in metrics
    assert metrics["eval_loss"] == pytest.approx(2 * hidden_states, rel=1e-5)


def test_the_best_checkpoint_is_loaded_with_its_projections(tmp_path: Path) -> None:
    data = dataset_for(TASK)
    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE, max_steps=4,
                        train_dataset=data, learning_rate=10.0, eval_strategy="steps", eval_steps=1,
                        save_strategy="steps", save_steps=1, load_best_model_at_end=True,
                        trainer_options={"eval_dataset": data})  # fmt: skip
    losses = logged(trained, "eval_loss")
    best = Path(trained.state.best_model_checkpoint)
    assert best.name != "checkpoint-4"  # otherwise this test shows nothing
    assert trained.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_two_stages_are_two_trainers(tmp_path: Path) -> None:
    student, teacher = narrow(), model_for(TASK, seed=1)
    distil(TASK, tmp_path / "1", student=student, teacher=teacher, **FIRST_STAGE)
    between = weights(student)
    second, _ = distil(TASK, tmp_path / "2", student=student, teacher=teacher)
    assert logged(second, "loss_hidden_states") == []
    assert not same(between, weights(student))


def test_model_init_gets_projections_of_its_own(tmp_path: Path) -> None:
    made: list[nn.Module] = []
    options = {**FIRST_STAGE, "train_sampling_strategy": "sequential"}

    def model_init() -> nn.Module:
        made.append(narrow())
        return made[-1]

    trainer = DistillationTrainer(
        model_init=model_init, teacher_model=model_for(TASK, seed=1),
        args=arguments(tmp_path, **options), train_dataset=dataset_for(TASK),
    )  # fmt: skip
    trainer.train()
    assert trainer.model is made[-1] and len(made) > 1
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    assert not any(model._forward_hooks for model in made)
    plain, _ = distil(TASK, tmp_path, student=narrow(), **options)
    assert logged(trainer, "loss") == logged(plain, "loss")


def test_auto_pairs_layers_that_are_alike(tmp_path: Path) -> None:
    """The student is the teacher's layers 1 and 3."""
    teacher = model_for(TASK, seed=1, layers=4)
    student = model_for(TASK, seed=1, layers=2)
    student.load_state_dict(teacher.state_dict(), strict=False)
    layers = student.bert.encoder.layer
    layers[1].load_state_dict(teacher.bert.encoder.layer[1].state_dict())
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, train_dataset=dataset_for(TASK, 32),
        args=arguments(tmp_path, **FIRST_STAGE, layer_mapping="auto", learning_rate=0.0,
                       save_strategy="steps", save_steps=1),
    )  # fmt: skip
    trainer.train()
    assert trainer.layer_similarity.shape == (3, 5)
    with safe_open(tmp_path / "checkpoint-1" / PROJECTIONS_FILE, framework="pt") as file:
        pairs = json.loads(file.metadata()["layer_pairs"])
    assert pairs == [[0, 0], [1, 1], [2, 2]]
    assert logged(trainer, "loss") == [pytest.approx(0.0, abs=1e-6)] * 3


class OneByOne(TorchIterableDataset):
    def __init__(self, rows: Dataset) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Any:
        return self.rows


def test_auto_looks_at_the_first_rows_of_a_stream(tmp_path: Path) -> None:
    data = dataset_for(TASK, 16)
    options = {**FIRST_STAGE, "layer_mapping": "auto", "max_steps": 2}
    of_rows, of_stream = (
        distil(TASK, tmp_path, student=narrow(), train_dataset=rows, **options)[0]
        for rows in (data, data.to_iterable_dataset())
    )
    assert torch.allclose(of_stream.layer_similarity, of_rows.layer_similarity)
    assert of_stream.layer_pairs == of_rows.layer_pairs
    with pytest.raises(ValueError, match="OneByOne cannot be read twice; .*choose uniform"):
        distil(TASK, tmp_path, student=narrow(), train_dataset=OneByOne(data), **options)


def starting_projections(path: Path, rows: Any) -> dict[str, Tensor]:
    trained, _ = distil(TASK, path, student=narrow(), train_dataset=rows, **FIRST_STAGE,
                        max_steps=1, learning_rate=0.0)  # fmt: skip
    return weights(trained.distiller.layers._projections)


def test_projections_begin_at_random_only_where_data_cannot_be_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = dataset_for(TASK, 16)
    of_rows = starting_projections(tmp_path, data)
    assert same(starting_projections(tmp_path, data.to_iterable_dataset()), of_rows)
    assert "projections" not in caplog.text
    unseen = starting_projections(tmp_path, OneByOne(data))
    assert same(unseen, Projections(8, 16, seed=42, device=torch.device("cpu")).state_dict())
    assert "projections" in caplog.text and "OneByOne" in caplog.text


def test_looking_at_data_changes_nothing_but_the_projections(tmp_path: Path) -> None:
    class Watch(DistillationTrainer):
        def _settle_layers(self, dataset: Any) -> None:
            states = [rng_states(), weights(self.model)]
            super()._settle_layers(dataset)
            found.append((states, [rng_states(), weights(self.model)], self.model.training))

    found: list[Any] = []
    student = model_for(TASK, seed=0, layers=1, width=8, hidden_dropout_prob=0.1)
    trained, _ = distil(TASK, tmp_path, student=student, trainer_class=Watch, **FIRST_STAGE)
    ((rng, before), (rng_after, after), trains) = found[0]
    assert torch.equal(rng["cpu"], rng_after["cpu"]) and rng["python"] == rng_after["python"]
    assert same(before, after) and trains
    settled = weights(trained.distiller.layers._projections)
    trained.evaluate(dataset_for(TASK))  # comes by again, and leaves what was trained
    assert same(settled, weights(trained.distiller.layers._projections))


def test_nothing_is_left_behind_when_training_fails(tmp_path: Path) -> None:
    student, teacher = narrow(), model_for(TASK, seed=1)

    class Fails(DistillationTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        distil(TASK, tmp_path, student=student, teacher=teacher, trainer_class=Fails,
               **FIRST_STAGE)  # fmt: skip
    assert not student._forward_hooks and not hasattr(student, "distillation_projections")


def test_rows_of_different_lengths(tmp_path: Path) -> None:
    """Dynamic padding: no length is remembered from the batch before."""
    rows = dataset_for(TASK).to_list()
    short = [{k: v[:14] if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    data = Dataset.from_list([*rows[:8], *[r for r in short if r["end_positions"] < 14][:8]])
    trained, _ = distil(TASK, tmp_path, student=narrow(), **FIRST_STAGE, max_steps=4,
                        train_dataset=data, per_device_train_batch_size=1)  # fmt: skip
    assert len(logged(trained, "loss")) == 4
