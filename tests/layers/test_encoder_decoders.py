"""The layers of encoders and decoders: losses against full maps in float64, and runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distil, logged
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import LEDConfig, LEDForConditionalGeneration, TrainerCallback
from transformers import default_data_collator as collator
from zoo import PAD, zoo_dataset, zoo_model

from hf_distill import TeacherRecorderCallback
from hf_distill.layers import PROJECTIONS_FILE

TASKS = {"t5": "summarization", "bart": "summarization", "whisper": "automatic-speech-recognition"}
PARTS = ("encoder", "decoder", "cross")
LOSSES = ("scores", "probabilities", "probabilities_mse")
every_architecture = pytest.mark.parametrize("architecture", TASKS)


def pair(architecture: str, **options: Any) -> tuple[Any, Any]:
    """A student with one layer in each stack, and a teacher with two."""
    task = TASKS[architecture]
    models = (
        zoo_model(task, architecture, seed=0, layers=1, **options),
        zoo_model(task, architecture, seed=1, layers=2),
    )
    for model in models if architecture == "t5" else ():
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):  # T5 does not scale its scores
                parameter.data *= 0.01
    return models


def data(architecture: str, kind: str = "right", **options: Any) -> Any:
    """Inputs padded on a side; labels have holes, or there are none but a masked target."""
    rows = zoo_dataset(TASKS[architecture], 8, **options)
    if kind == "left" and "attention_mask" in rows.column_names:
        rows = rows.map(
            lambda row: {
                name: row[name][sum(row["attention_mask"]) :]
                + row[name][: sum(row["attention_mask"])]
                for name in ("input_ids", "attention_mask")
            }
        )
    if kind == "target":
        rows = zoo_dataset(TASKS[architecture], 8, labels=False, target=True)
        rows = rows.map(
            lambda row, i: {"decoder_attention_mask": [1] * (12 - i) + [0] * i}, with_indices=True
        )
    return rows


def run(architecture: str, student: Any, teacher: Any, path: Path, **options: Any) -> Any:
    extra = options.pop("trainer_options", {})
    return distil(
        TASKS[architecture], path, student=student, teacher=teacher,
        train_dataset=options.pop("train_dataset", None) or data(architecture),
        trainer_options={"data_collator": collator, **extra},
        **{
            "stage": "intermediate", "max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 0.0,
            "train_sampling_strategy": "sequential", "per_device_train_batch_size": 8, **options,
        },
    )  # fmt: skip


# ---- by hand ---------------------------------------------------------------------------------


def computed(model: Any, batch: dict[str, Tensor], *, maps: bool = True) -> dict[str, Any]:
    """Hidden states, probabilities and scores of all layers, by part, in float64."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    if "labels" in inputs:
        labels = inputs.pop("labels")
        ids = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == -100, PAD)
        ids[:, 0] = model.config.decoder_start_token_id
        inputs["decoder_input_ids"] = ids
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: seen.append((name, o)))
        for name, module in model.named_modules()
        if name.split(".")[-1] in ("q", "k", "q_proj", "k_proj")
    ]
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    if maps and not outputs.cross_attentions:
        pytest.skip("this version of transformers returns no attention maps of T5")
    found: dict[str, Any] = {
        "encoder": {"states": outputs.encoder_hidden_states, "maps": outputs.encoder_attentions},
        "decoder": {"states": outputs.decoder_hidden_states, "maps": outputs.decoder_attentions},
        "cross": {"maps": outputs.cross_attentions},
    }
    vectors: dict[str, dict[str, list[Tensor]]] = {part: {"q": [], "k": []} for part in PARTS}
    for name, value in seen:
        crossed = "encoder_attn" in name or "EncDecAttention" in name
        part = "cross" if crossed else "decoder" if "decoder." in name else "encoder"
        vectors[part][name.split(".")[-1][0]].append(value)
    for part, layers in vectors.items():
        found[part]["scores"] = []
        for q, k in zip(layers["q"], layers["k"], strict=True):
            q, k = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k))
            scores = q @ k.mT
            if model.config.model_type == "t5":
                if part != "cross":
                    attention = model.get_submodule(f"{part}.block.0.layer.0.SelfAttention")
                    scores = scores + attention.compute_bias(q.shape[2], k.shape[2])
            else:
                scores = scores / q.shape[-1] ** 0.5
            found[part]["scores"].append(scores)
    return found


def counted(batch: dict[str, Tensor], lengths: dict[str, int]) -> dict[str, Tensor]:
    """The pairs of query and key of each part that count, ``(rows, queries, keys)``."""
    rows = len(next(iter(batch.values())))
    keys = batch.get("attention_mask", torch.ones(rows, lengths["encoder"])).bool()
    reads = batch.get("decoder_attention_mask", torch.ones(rows, lengths["decoder"])).bool()
    queries = batch["labels"] != -100 if "labels" in batch else reads
    causal = torch.ones(lengths["decoder"], lengths["decoder"], dtype=torch.bool).tril()
    return {
        "encoder": keys[:, :, None] & keys[:, None],
        "decoder": queries[:, :, None] & reads[:, None] & causal,
        "cross": queries[:, :, None] & keys[:, None],
    }


def expected(
    student: Any, teacher: Any, batch: dict[str, Tensor], kind: str
) -> tuple[float, float]:
    """The losses of layers (0, 0) and (1, 2), pair by pair of tokens."""
    maps = kind != "scores"
    ours, theirs = (computed(one, batch, maps=maps) for one in (student, teacher))
    lengths = {part: ours[part]["states"][0].shape[1] for part in ("encoder", "decoder")}
    pairs = counted(batch, lengths)
    hidden = attention = 0.0
    for part in PARTS:
        valid = pairs[part].any(-1)
        if part != "cross":
            for i, j in ((0, 0), (1, 2)):
                squares = (ours[part]["states"][i] - theirs[part]["states"][j]).square().mean(-1)
                hidden += float(squares[valid].sum() / valid.sum())
        name = "scores" if kind == "scores" else "maps"
        a, b = ours[part][name][0], theirs[part][name][1]
        if kind == "probabilities":
            terms = torch.where(b > 0, b * (b.log() - a.log()), 0.0).mean(1)
            attention += float(terms[pairs[part]].sum() / valid.sum())
        else:
            attention += float((a - b).square().mean(1)[pairs[part]].mean())
    return hidden, attention


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["right", "left", "target"])
@pytest.mark.parametrize("attention_loss", LOSSES)
@every_architecture
def test_the_losses_are_those_of_full_maps(
    architecture: str, attention_loss: str, kind: str, implementation: str, tmp_path: Path
) -> None:
    student, teacher = pair(architecture)
    for model in (student, teacher):
        model.set_attn_implementation(implementation)
    rows = data(architecture, kind)
    batch = dict(rows.with_format("torch")[:])
    hidden, attention = expected(student, teacher, batch, attention_loss)
    trained, _ = run(architecture, student, teacher, tmp_path, train_dataset=rows,
                     attention_loss=attention_loss)  # fmt: skip
    assert logged(trained, "loss_hidden_states") == [pytest.approx(hidden, rel=1e-4)]
    assert logged(trained, "loss_attention") == [pytest.approx(attention, rel=1e-4)]
    assert logged(trained, "loss") == [pytest.approx(hidden + attention, rel=1e-4)]


@every_architecture
def test_mixed_into_the_prediction_stage(architecture: str, tmp_path: Path) -> None:
    student, teacher = pair(architecture)
    batch = dict(data(architecture).with_format("torch")[:])
    hidden, attention = expected(student, teacher, batch, "scores")
    trained, _ = run(architecture, student, teacher, tmp_path, stage="prediction",
                     distillation_loss_weight=0.25, hidden_states_loss_weight=0.5,
                     attention_loss_weight=2.0)  # fmt: skip
    (label,), (prediction,) = logged(trained, "loss_task"), logged(trained, "loss_prediction")
    total = 0.75 * label + 0.25 * prediction + 0.5 * hidden + 2.0 * attention
    assert logged(trained, "loss") == [pytest.approx(total, rel=1e-4)]


# ---- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention_loss", [*LOSSES, "relations"])
@every_architecture
def test_accumulation_changes_neither_loss_nor_gradient(
    architecture: str, attention_loss: str, tmp_path: Path
) -> None:
    def step(size: int) -> Any:
        return run(architecture, *pair(architecture), tmp_path, attention_loss=attention_loss,
                   per_device_train_batch_size=size,
                   gradient_accumulation_steps=8 // size)  # fmt: skip

    whole, norms = step(8)
    for size in (4, 1):
        split, split_norms = step(size)
        for part in ("loss", "loss_hidden_states", "loss_attention"):
            assert logged(split, part) == pytest.approx(logged(whole, part), rel=2e-5), part
        assert split_norms.norms == pytest.approx(norms.norms, rel=2e-4)


class Gradients(TrainerCallback):
    """Which parameters have one."""

    names: frozenset[str] = frozenset()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.names = frozenset(n for n, p in named if p.grad is not None and p.grad.any())


@pytest.mark.parametrize(("weights", "mapping", "reached"), [
    ((1.0, 0.0), "uniform", "encoder decoder cross"),
    ((0.0, 1.0), "uniform", "encoder decoder cross bias"),
    ((0.0, 1.0), "encoder=2", "encoder bias"),
    ((1.0, 0.0), "decoder=1:2", "encoder decoder cross"),
], ids=str)  # fmt: skip
@every_architecture
def test_the_gradient_reaches_both_stacks(
    architecture: str, weights: tuple[float, float], mapping: str, reached: str, tmp_path: Path
) -> None:
    seen = Gradients()
    run(architecture, *pair(architecture), tmp_path, hidden_states_loss_weight=weights[0],
        attention_loss_weight=weights[1], layer_mapping=mapping,
        trainer_options={"callbacks": [seen]})  # fmt: skip
    crossed = ("encoder_attn", "EncDecAttention")
    found = {
        "encoder": any("encoder." in name for name in seen.names),
        "decoder": any("decoder.layers" in n or "decoder.block" in n for n in seen.names),
        "cross": any(part in name for name in seen.names for part in crossed),
        "bias": any("relative_attention_bias" in name for name in seen.names),
    }
    expected = set(reached.split())
    if architecture != "t5":
        expected -= {"bias"}
    elif weights[0] and "decoder" in expected:
        expected |= {"bias"}
    assert {name for name, there in found.items() if there} == expected


@every_architecture
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    architecture: str, tmp_path: Path
) -> None:
    """With narrower students, whose stacks have projections each, and layers by similarity."""
    options: dict[str, Any] = {
        "attention_loss": "relations", "relation_heads": 2,
        "layer_mapping": "encoder=auto;decoder=2", "max_steps": 4, "learning_rate": 1e-3,
        "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4,
    }  # fmt: skip

    def trained(folder: str, **more: Any) -> Any:
        student, teacher = pair(architecture, d_model=8, hidden_size=8)
        return run(architecture, student, teacher, tmp_path / folder, **options, **more)[0]

    whole = trained("whole")
    assert set(whole.layer_similarity) == {"encoder"}
    assert whole.layer_pairs["decoder"] == [(0, 0), (1, 2)]
    student, teacher = pair(architecture, d_model=8, hidden_size=8)
    resumed = type(whole)(
        model=student, teacher_model=teacher, args=copy.copy(whole.args),
        train_dataset=data(architecture), data_collator=collator,
    )  # fmt: skip
    resumed.args.output_dir = str(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    files = [tmp_path / name / "checkpoint-4" / PROJECTIONS_FILE for name in ("whole", "resumed")]
    one, other = (load_file(file) for file in files)
    assert len(one) == 8 and all(torch.equal(value, other[name]) for name, value in one.items())
    with safe_open(files[0], framework="pt") as file:
        pairs = json.loads(file.metadata()["layer_pairs"])
    assert pairs["decoder"] == [[0, 0], [1, 2]] and pairs["encoder"][0] == [0, 0]


@pytest.mark.parametrize("options", [
    {"bf16": True}, {"gradient_checkpointing": True},
    {"torch_compile": True, "torch_compile_backend": "aot_eager"},
], ids=str)  # fmt: skip
def test_modes_of_training(options: dict[str, Any], tmp_path: Path) -> None:
    steps = {"max_steps": 2, "learning_rate": 1e-3, "attention_loss": "probabilities"}
    plain, norms = run("t5", *pair("t5"), tmp_path, **steps)
    other, other_norms = run("t5", *pair("t5"), tmp_path, **steps, **options)
    tolerance = 0.05 if "bf16" in options else 1e-4
    for part in ("loss", "loss_hidden_states", "loss_attention"):
        assert logged(other, part) == pytest.approx(logged(plain, part), rel=tolerance)
    if "bf16" not in options:
        assert other_norms.norms == pytest.approx(norms.norms, rel=1e-3)


# ---- mappings and refusals -------------------------------------------------------------------


@pytest.mark.parametrize(("mapping", "encoder", "decoder"), [
    ("last", [(0, 0), (1, 2)], [(0, 0), (1, 2)]),
    ("1", [(0, 0), (1, 1)], [(0, 0), (1, 1)]),
    ("encoder=first; decoder=1:2", [(0, 0), (1, 1)], [(1, 2)]),
    ({"encoder": [2], "decoder": {1: 1}}, [(0, 0), (1, 2)], [(1, 1)]),
    ('{"decoder": {"1": 1}}', None, [(1, 1)]),
], ids=str)  # fmt: skip
def test_layers_of_each_stack(mapping: Any, encoder: Any, decoder: Any, tmp_path: Path) -> None:
    trained, _ = run("bart", *pair("bart"), tmp_path, layer_mapping=mapping)
    assert trained.layer_pairs.get("encoder") == encoder
    assert trained.layer_pairs["decoder"] == decoder


@pytest.mark.parametrize(("mapping", "message"), [
    ("decoder=2,4", "Of the decoders: layer_mapping='2,4' names 2 teacher layers"),
    ("encoder=2;middle=1", "names 'middle', but the models have encoder and decoder"),
    ("encoder=2;encoder=1", "no layer mapping.*'encoder=2,4,6;decoder=1:2,3:6'"),
], ids=str)  # fmt: skip
def test_bad_mappings(mapping: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run("bart", *pair("bart"), tmp_path, layer_mapping=mapping)


def test_a_model_with_one_stack_has_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names 'encoder', but the models have one stack"):
        distil("question-answering", tmp_path, stage="intermediate",
               layer_mapping="encoder=2")  # fmt: skip


def test_recorded_samples_are_refused(tmp_path: Path) -> None:
    recorder = TeacherRecorderCallback(tmp_path / "samples")
    with pytest.raises(ValueError, match="TeacherRecorderCallback .*has an encoder and a decoder"):
        run("bart", *pair("bart"), tmp_path, trainer_options={"callbacks": [recorder]})


def test_attention_out_of_reach_is_refused_and_hidden_states_are_compared(tmp_path: Path) -> None:
    def led(seed: int) -> Any:
        torch.manual_seed(seed)
        sizes = {"vocab_size": 97, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
                 "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "max_encoder_position_embeddings": 64,
                 "max_decoder_position_embeddings": 64, "pad_token_id": 1,
                 "attention_window": [4, 4], "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
        return LEDForConditionalGeneration(LEDConfig(**sizes))

    with pytest.raises(ValueError, match="LEDFor.* cannot be recorded.*attention_loss_weight=0"):
        run("bart", led(0), led(1), tmp_path, attention_loss="scores")
    trained, _ = run("bart", led(0), led(1), tmp_path)
    assert logged(trained, "loss_hidden_states")[0] > 0
