"""What attention losses know of which tokens see each other, and of what else makes attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from layer_references import models, probabilities_loss
from runs import distil, logged
from torch import Tensor
from transformers import AutoConfig, DataCollatorWithFlattening, default_data_collator
from zoo import zoo_config, zoo_dataset

ATTENTION_LOSSES = ("scores", "probabilities", "probabilities_mse", "relations")


def losses(
    student: Any, teacher: Any, data: Any, collator: Any, path: Path, task: str, **options: Any
) -> dict[str, float]:
    """What the first step logs of a run over all rows of the data at once."""
    trained, _ = distil(
        task, path, student=student, teacher=teacher, train_dataset=data,
        trainer_options={"data_collator": collator}, record_gradients=False,
        **{
            "stage": "intermediate", "max_steps": 1, "learning_rate": 0.0,
            "per_device_train_batch_size": len(data), "train_sampling_strategy": "sequential",
            **options,
        },
    )  # fmt: skip
    names = ("loss_hidden_states", "loss_attention")
    return {name: values[0] for name in names if (values := logged(trained, name))}


def texts(task: str, rows: int = 6) -> list[dict[str, list[int]]]:
    """Texts without padding, of different lengths."""
    found = []
    for row in zoo_dataset(task, rows, labels=False):
        length = sum(row["attention_mask"])
        found.append({"input_ids": row["input_ids"][:length]})
    return found


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_packed_rows_are_rows_of_their_own(
    architecture: str, attention_loss: str, tmp_path: Path
) -> None:
    """Packed by transformers' own collator, by position_ids alone."""
    task = "text-generation"
    alone = zoo_dataset(task, 6, labels=False)

    def run(data: Any, collator: Any, **options: Any) -> dict[str, float]:
        pair = models(task, architecture)
        return losses(*pair, data, collator, tmp_path, task, attention_loss=attention_loss,
                      **options)  # fmt: skip

    apart = run(alone, default_data_collator)
    packed = run(texts(task), DataCollatorWithFlattening(), remove_unused_columns=False)
    assert packed == pytest.approx(apart, rel=1e-5)
    assert apart["loss_attention"] > 1e-4


def block_diagonal(features: list[dict[str, Any]], causal: bool, additive: bool) -> dict[str, Any]:
    """All texts in one row, with a mask of pairs, and padding at its end."""
    lengths = [len(feature["input_ids"]) for feature in features]
    ids = torch.cat([torch.tensor(feature["input_ids"]) for feature in features])
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    seen = text[:, None] == text
    seen = seen.tril() if causal else seen
    ids, positions = (torch.nn.functional.pad(x, (0, 3)) for x in (ids, positions))
    seen = torch.nn.functional.pad(seen, (0, 3, 0, 3))
    seen[-3:, 0] = True  # padding sees something, and nobody sees it
    mask: Tensor = seen
    if additive:
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"input_ids": ids[None], "position_ids": positions[None],
            "attention_mask": mask[None, None]}  # fmt: skip


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("attention_loss", ["scores", "probabilities"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_masks_of_pairs(
    architecture: str, attention_loss: str, additive: bool, tmp_path: Path
) -> None:
    causal = architecture == "llama"
    task = "text-generation" if causal else "token-classification"

    def run(data: Any, collator: Any) -> dict[str, float]:
        return losses(*models(task, architecture), data, collator, tmp_path, task,
                      attention_loss=attention_loss, remove_unused_columns=False)  # fmt: skip

    alone = zoo_dataset(task, 6, labels=False)
    apart = run(alone, default_data_collator)
    packed = run(texts(task), lambda features: block_diagonal(features, causal, additive))
    assert packed == pytest.approx(apart, rel=1e-5)


def small(model_type: str, **options: Any) -> Any:
    sizes = zoo_config("llama", 2).to_dict()
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size",
             "num_key_value_heads", "num_hidden_layers", "pad_token_id")  # fmt: skip
    config = AutoConfig.for_model(model_type, **{name: sizes[name] for name in names}, **options)
    return transformers.AutoModelForCausalLM.from_config(config)


EXTRAS = {
    "gemma2": ({"head_dim": 8}, "a soft-cap"),
    "gpt_oss": (
        {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "attention sinks",
    ),
}


@pytest.mark.parametrize("attention_loss", ATTENTION_LOSSES)
@pytest.mark.parametrize("model_type", EXTRAS)
def test_what_changes_scores_beyond_queries_and_keys(
    model_type: str, attention_loss: str, tmp_path: Path
) -> None:
    """Refused by name; relations do not depend on it, nor do scores on sinks."""
    options, named = EXTRAS[model_type]
    task = "text-generation"

    def run() -> dict[str, float]:
        torch.manual_seed(0)
        pair = [small(model_type, **options) for _ in range(2)]
        return losses(*pair, zoo_dataset(task, 4, labels=False), default_data_collator, tmp_path,
                      task, attention_loss=attention_loss)  # fmt: skip

    if attention_loss == "relations" or (model_type, attention_loss) == ("gpt_oss", "scores"):
        assert run()["loss_attention"] > 0
    else:
        with pytest.raises(ValueError, match=f"attention_loss='{attention_loss}'.*has {named}"):
            run()


def test_a_bias_in_the_mask(tmp_path: Path) -> None:
    """BEiT adds its relative position bias to the mask."""
    task = "image-classification"
    config = AutoConfig.for_model(
        "beit", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, use_relative_position_bias=True, num_labels=3, out_indices=[1],
    )  # fmt: skip
    pair = [transformers.AutoModelForImageClassification.from_config(config) for _ in range(2)]
    for model in pair:
        for name, parameter in model.named_parameters():
            if "relative_position_bias" in name:
                torch.nn.init.normal_(parameter)
    data = zoo_dataset(task, 4, labels=False)
    found = losses(*pair, data, default_data_collator, tmp_path, task,
                   attention_loss="probabilities")  # fmt: skip
    expected = probabilities_loss(*pair, dict(data.with_format("torch")[:]), [(1, 1), (2, 2)])
    assert found["loss_attention"] == pytest.approx(expected, rel=1e-4)


def test_packed_rows_under_an_implementation_without_masks(tmp_path: Path) -> None:
    """Flash attention gets no mask: what sees what is then not known here."""
    from transformers import AttentionInterface

    sdpa = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register("mask_free", sdpa)
    task = "text-generation"
    pair = models(task, "llama")
    for model in pair:
        model.set_attn_implementation("mask_free")
    with pytest.raises(ValueError, match=r"several texts in a row .* implementation mask_free"):
        losses(*pair, texts(task), DataCollatorWithFlattening(), tmp_path, task,
               attention_loss="scores", remove_unused_columns=False)  # fmt: skip
