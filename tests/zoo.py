"""Tiny models of many architectures for every task, and batches that they can be trained on."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig

VOCABULARY = 97
PAD, START, END = 1, 2, 3
LENGTH = 12

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
    "cls_token_id": START,
    "sep_token_id": END,
    "initializer_range": 0.5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

# Where an architecture has names of its own for the sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16, "summary_last_dropout": 0.0},
    "mpnet": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {"embedding_size": 8, "classifier_dropout_prob": 0.0},
    "distilbert": {
        "dim": 16, "n_heads": 2, "hidden_dim": 32, "dropout": 0.0, "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0, "qa_dropout": 0.0,
    },
    "modernbert": {
        "global_attn_every_n_layers": 2, "local_attention": 8, "initializer_cutoff_factor": 2.0,
    },
    "gpt2": {
        "n_embd": 16, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "classifier_dropout": 0.0,
    },
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    **{
        name: {
            "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.0,
            "decoder_start_token_id": PAD, "is_encoder_decoder": True, "initializer_factor": 5.0,
        }
        for name in ("t5", "mt5")
    },
    "longt5": {
        "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "dropout_rate": 0.0,
        "decoder_start_token_id": PAD, "is_encoder_decoder": True, "initializer_factor": 5.0,
        "local_radius": 3, "global_block_size": 2,
    },
    **{
        name: {
            "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0, "attention_dropout": 0.0,
            "activation_dropout": 0.0, "init_std": 0.5, "decoder_start_token_id": START,
            "is_encoder_decoder": True,
        }
        for name in ("bart", "mbart", "marian", "pegasus")
    },
    "vit": {"image_size": 8, "patch_size": 4},
    "convnext": {
        "hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2, "image_size": 8, "patch_size": 2,
    },
    "opt": {
        "ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0, "attention_dropout": 0.0,
        "init_std": 0.5, "layerdrop": 0.0,
    },
    **{
        name: {
            "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 4],
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "hidden_dropout": 0.0,
            "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "layerdrop": 0.0,
            "activation_dropout": 0.0, "final_dropout": 0.0, "apply_spec_augment": False,
            "feat_extract_norm": "layer",
        }
        for name in ("wav2vec2", "hubert", "wavlm")
    },
    "whisper": {
        "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 4, "max_source_positions": 8,
        "max_target_positions": 16, "dropout": 0.0, "attention_dropout": 0.0,
        "activation_dropout": 0.0, "init_std": 0.5, "decoder_start_token_id": START,
        "is_encoder_decoder": True, "apply_spec_augment": False,
    },
}  # fmt: skip

AUTO_MODELS = {
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
}

_ENCODERS = (
    "bert", "roberta", "xlm-roberta", "electra", "mpnet", "deberta-v2", "albert", "distilbert",
    "modernbert",
)  # fmt: skip

PAIRS: list[tuple[str, str]] = [
    *(("question-answering", name) for name in (*_ENCODERS, "bart")),
    *(("text-classification", name) for name in (*_ENCODERS, "gpt2", "llama", "t5", "bart")),
    *(("token-classification", name) for name in (*_ENCODERS, "gpt2")),
    *(("multiple-choice", name) for name in _ENCODERS),
    *(("fill-mask", name) for name in _ENCODERS),
    *(("text-generation", name) for name in ("gpt2", "llama", "qwen2")),
    *(("summarization", name) for name in ("t5", "bart")),
    *(("image-classification", name) for name in ("vit", "convnext")),
    ("audio-classification", "wav2vec2"),
    ("automatic-speech-recognition", "whisper"),
]
"""Every (task, architecture) that is tested."""


def zoo_config(architecture: str, layers: int, labels: int = 3, **options: Any) -> Any:
    sizes = {**_ENCODER, **ARCHITECTURES[architecture], "num_labels": labels}
    names = ("no", "maybe", "yes")[:labels]
    sizes |= {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    for name in ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers"):
        sizes[name] = layers
    sizes["num_decoder_layers"] = sizes["decoder_layers"] = layers
    return AutoConfig.for_model(architecture, **{**sizes, **options})


def zoo_model(task: str, architecture: str, *, seed: int, layers: int = 1, **options: Any) -> Any:
    """A random model whose heads answer differently for different inputs."""
    torch.manual_seed(seed)
    auto_model = getattr(transformers, AUTO_MODELS[task])
    model: nn.Module = auto_model.from_config(
        zoo_config(architecture, layers, 2 if task == "question-answering" else 3, **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def zoo_dataset(
    task: str, rows: int = 16, *, seed: int = 0, labels: bool = True, target: bool = False
) -> Dataset:
    """Features of different lengths; rows have very different numbers of labels.

    Args:
        task: as in ``AUTO_MODELS``.
        rows: how many.
        seed: of the random numbers.
        labels: whether there are labels.
        target: for a sequence-to-sequence task without labels, give decoder_input_ids.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=random)

    lengths = draw(LENGTH // 2, LENGTH + 1, rows)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = draw(5, VOCABULARY, rows, LENGTH) * mask + PAD * (1 - mask)
    ids[torch.arange(rows), lengths - 1] = END
    columns: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if task in ("question-answering", "multiple-choice"):
        columns["token_type_ids"] = (torch.arange(LENGTH) >= 4).long() * mask
    # Many labels in the first rows and few in the last, and one row without any.
    counted = torch.rand(rows, LENGTH, generator=random) < torch.linspace(1, 0.1, rows)[:, None]
    counted &= mask.bool()
    counted[-2] = False
    if task == "question-answering":
        columns["start_positions"] = draw(0, 4, rows)
        columns["end_positions"] = columns["start_positions"] + 1
    elif task == "token-classification":
        columns["labels"] = draw(0, 3, rows, LENGTH).masked_fill(~counted, -100)
    elif task == "multiple-choice":
        columns = {name: torch.stack((value, value.flip(0)), 1) for name, value in columns.items()}
        columns["labels"] = draw(0, 2, rows)
    elif task == "fill-mask":
        columns["labels"] = ids.masked_fill(~counted, -100)
        columns["input_ids"] = ids.masked_fill(counted, 4)
    elif task == "text-generation":
        columns["labels"] = ids.masked_fill(~counted, -100)
    elif task == "image-classification":
        columns = {"pixel_values": torch.randn(rows, 3, 8, 8, generator=random)}
        columns["labels"] = draw(0, 3, rows)
    elif task == "audio-classification":
        columns = {"input_values": torch.randn(rows, 400, generator=random)}
        columns["labels"] = draw(0, 3, rows)
    elif task in ("summarization", "automatic-speech-recognition"):
        if task != "summarization":
            columns = {"input_features": torch.randn(rows, 4, 16, generator=random)}
        columns["labels"] = draw(5, VOCABULARY, rows, LENGTH).masked_fill(~counted, -100)
        if target:
            ids = draw(5, VOCABULARY, rows, LENGTH) * mask + PAD * (1 - mask)
            ids[:, 0] = PAD  # as T5 begins
            columns["decoder_input_ids"] = ids
    else:
        columns["labels"] = draw(0, 3, rows)
    if not labels:
        columns = {k: v for k, v in columns.items() if k != "labels" and "positions" not in k}
    return Dataset.from_dict({name: value.tolist() for name, value in columns.items()})


def zoo_inputs(model: nn.Module, rows: Dataset) -> dict[str, Tensor]:
    """All rows of a data set as one batch, without token types where a model has none."""
    batch: Any = rows.with_format("torch")[:]
    if type(model).__name__.startswith(("Roberta", "XLMRoberta", "DistilBert", "MPNet")):
        batch.pop("token_type_ids", None)
    return dict(batch)
