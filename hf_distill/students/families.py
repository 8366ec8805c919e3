"""Where each family of models keeps its layers, blocks and tables: one declaration per family.

A model is a stream of hidden states to which blocks add. A block has *readers*, linear maps from
the stream to its units (the heads of an attention, the neurons of a feed-forward network), and a
*writer*, a linear map from the units back to the stream.

To add a family, declare its stack in ``FAMILIES``; its checks are in
``tests/students/test_student_families.py``. Whatever a declaration leaves out must keep its shape
when the model becomes narrower (it is copied), or the student is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Part:
    """A linear map in a layer, or one of several that share a matrix (``Wqkv``)."""

    path: str
    """Of the module, from the layer."""
    index: int = 0
    of: int = 1
    """The matrix is so many maps of equal size, one below the other."""


@dataclass(frozen=True)
class Attention:
    """A block whose units are heads."""

    query: Part
    key: Part
    value: Part
    writer: str
    norm: str
    """Before the readers if the stack is ``pre_norm``, otherwise after the sum."""
    position_key: str | None = None
    """Reads the relative position embeddings instead of the stream, where a model has it."""
    position_query: str | None = None
    crosses: bool = False
    """True if keys and values read the encoder's last states, not the stream."""


@dataclass(frozen=True)
class FeedForward:
    """A block whose units are neurons; gated ones have two readers."""

    readers: tuple[Part, ...]
    """Those that a model has."""
    writer: str
    norm: str


Block = Attention | FeedForward


@dataclass(frozen=True)
class Stack:
    """Layers that write to one stream. Paths are from the base model, in layers from the layer."""

    layers: str
    blocks: tuple[Block, ...] = ()
    pre_norm: bool = False
    tables: tuple[str, ...] = ()
    """Embeddings, parameters or convolutions whose outputs are added to the stream."""
    projection: str | None = None
    """Where a model has it, the map from narrower embeddings to the stream."""
    embedding_norm: str | None = None
    final_norm: str | None = None
    head_tables: tuple[str, ...] = ()
    """With one column for each head, for the self-attention of all layers: it keeps the same
    heads."""
    relative_embeddings: str | None = None
    """Position embeddings that all layers read through their query and key maps (DeBERTa)."""
    relative_norm: str | None = None
    first_layer: str | None = None
    """Why the teacher's layer 0 must stay the first one, where it must."""
    always_run: tuple[int, ...] = ()
    """Layers that give something to all later ones, such as T5's position bias."""


@dataclass(frozen=True)
class Family:
    """The declaration of a model type."""

    stack: Stack
    """The only stack, or the encoder's."""
    decoder: Stack | None = None
    decoder_layers: str = "decoder_layers"
    """The configuration's name for the number of the decoder's layers."""
    same_sizes: tuple[tuple[str, str], ...] = ()
    """Entries of the configuration, of encoder and decoder, that must be equal to be fitted."""
    depth_only: str | None = None
    """Why widths cannot change, where they cannot: layers are copied then."""
    intermediate_size: str = "intermediate_size"
    """The configuration's name for the number of neurons."""
    free_head_size: str | None = None
    """The configuration's name for the size of a head, if it does not follow from the width."""
    width_names: tuple[str, ...] = ()
    """Other entries of the configuration that change with the width if they are equal to it."""
    per_layer: tuple[str, ...] = ()
    """Lists of the configuration with one entry for each layer."""
    place_matters: str | None = None
    """An entry of the configuration with which a layer computes something else at another place."""


_BERT_FFN = FeedForward((Part("intermediate.dense"),), "output.dense", "output.LayerNorm")
_BERT_TABLES = (
    "embeddings.word_embeddings",
    "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
)


def _bert_attention(query: str, key: str, value: str, **options: Any) -> Attention:
    return Attention(
        query=Part(f"attention.self.{query}"),
        key=Part(f"attention.self.{key}"),
        value=Part(f"attention.self.{value}"),
        writer="attention.output.dense",
        norm="attention.output.LayerNorm",
        **options,
    )


_BERT = Stack(
    layers="encoder.layer",
    blocks=(_bert_attention("query", "key", "value"), _BERT_FFN),
    tables=_BERT_TABLES,
    embedding_norm="embeddings.LayerNorm",
)
_ELECTRA = Stack(
    layers=_BERT.layers,
    blocks=_BERT.blocks,
    tables=_BERT_TABLES,
    projection="embeddings_project",
    embedding_norm="embeddings.LayerNorm",
)
_DEBERTA = Stack(
    layers="encoder.layer",
    blocks=(
        _bert_attention(
            "query_proj",
            "key_proj",
            "value_proj",
            position_key="attention.self.pos_key_proj",
            position_query="attention.self.pos_query_proj",
        ),
        _BERT_FFN,
    ),
    tables=_BERT_TABLES,
    projection="embeddings.embed_proj",
    embedding_norm="embeddings.LayerNorm",
    relative_embeddings="encoder.rel_embeddings",
    relative_norm="encoder.LayerNorm",
)
_DISTILBERT = Stack(
    layers="transformer.layer",
    blocks=(
        Attention(
            query=Part("attention.q_lin"),
            key=Part("attention.k_lin"),
            value=Part("attention.v_lin"),
            writer="attention.out_lin",
            norm="sa_layer_norm",
        ),
        FeedForward((Part("ffn.lin1"),), "ffn.lin2", "output_layer_norm"),
    ),
    tables=_BERT_TABLES[:2],
    embedding_norm="embeddings.LayerNorm",
)
_MPNET = Stack(
    layers="encoder.layer",
    blocks=(
        Attention(
            query=Part("attention.attn.q"),
            key=Part("attention.attn.k"),
            value=Part("attention.attn.v"),
            writer="attention.attn.o",
            norm="attention.LayerNorm",
        ),
        _BERT_FFN,
    ),
    tables=_BERT_TABLES[:2],
    embedding_norm="embeddings.LayerNorm",
    head_tables=("encoder.relative_attention_bias",),
)
_MODERNBERT = Stack(
    layers="layers",
    blocks=(
        Attention(
            query=Part("attn.Wqkv", 0, 3),
            key=Part("attn.Wqkv", 1, 3),
            value=Part("attn.Wqkv", 2, 3),
            writer="attn.Wo",
            norm="attn_norm",
        ),
        FeedForward((Part("mlp.Wi", 0, 2), Part("mlp.Wi", 1, 2)), "mlp.Wo", "mlp_norm"),
    ),
    pre_norm=True,
    tables=("embeddings.tok_embeddings",),
    embedding_norm="embeddings.norm",
    final_norm="final_norm",
    first_layer="which has no norm before its attention, unlike all others",
)
_GPT2 = Stack(
    layers="h",
    blocks=(
        Attention(
            query=Part("attn.c_attn", 0, 3),
            key=Part("attn.c_attn", 1, 3),
            value=Part("attn.c_attn", 2, 3),
            writer="attn.c_proj",
            norm="ln_1",
        ),
        FeedForward((Part("mlp.c_fc"),), "mlp.c_proj", "ln_2"),
    ),
    pre_norm=True,
    tables=("wte", "wpe"),
    final_norm="ln_f",
)
_LLAMA = Stack(
    layers="layers",
    blocks=(
        Attention(
            query=Part("self_attn.q_proj"),
            key=Part("self_attn.k_proj"),
            value=Part("self_attn.v_proj"),
            writer="self_attn.o_proj",
            norm="input_layernorm",
        ),
        FeedForward(
            (Part("mlp.gate_proj"), Part("mlp.up_proj")),
            "mlp.down_proj",
            "post_attention_layernorm",
        ),
    ),
    pre_norm=True,
    tables=("embed_tokens",),
    final_norm="norm",
)
_VIT = Stack(
    layers="layers",
    blocks=(
        Attention(
            query=Part("attention.q_proj"),
            key=Part("attention.k_proj"),
            value=Part("attention.v_proj"),
            writer="attention.o_proj",
            norm="layernorm_before",
        ),
        FeedForward((Part("mlp.fc1"),), "mlp.fc2", "layernorm_after"),
    ),
    pre_norm=True,
    tables=(
        "embeddings.cls_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection",
    ),
    final_norm="layernorm",
)
_T5_FIRST = "whose relative position bias all layers use"


def _t5_attention(place: int, name: str, *, crosses: bool = False) -> Attention:
    path = f"layer.{place}.{name}"
    return Attention(
        query=Part(f"{path}.q"),
        key=Part(f"{path}.k"),
        value=Part(f"{path}.v"),
        writer=f"{path}.o",
        norm=f"layer.{place}.layer_norm",
        crosses=crosses,
    )


def _t5_stack(side: str, *attentions: Attention) -> Stack:
    place = f"layer.{len(attentions)}"
    path = f"{place}.DenseReluDense"
    readers = (Part(f"{path}.wi"), Part(f"{path}.wi_0"), Part(f"{path}.wi_1"))
    return Stack(
        layers=f"{side}.block",
        blocks=(*attentions, FeedForward(readers, f"{path}.wo", f"{place}.layer_norm")),
        pre_norm=True,
        tables=("shared", f"{side}.embed_tokens"),
        final_norm=f"{side}.final_layer_norm",
        head_tables=(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",),
        first_layer=_T5_FIRST,
        always_run=(0,),
    )


def _bart_attention(name: str, *, crosses: bool = False) -> Attention:
    return Attention(
        query=Part(f"{name}.q_proj"),
        key=Part(f"{name}.k_proj"),
        value=Part(f"{name}.v_proj"),
        writer=f"{name}.out_proj",
        norm=f"{name}_layer_norm",
        crosses=crosses,
    )


def _bart_stack(side: str, *attentions: Attention, pre_norm: bool) -> Stack:
    return Stack(
        layers=f"{side}.layers",
        blocks=(*attentions, FeedForward((Part("fc1"),), "fc2", "final_layer_norm")),
        pre_norm=pre_norm,
        tables=("shared", f"{side}.embed_tokens", f"{side}.embed_positions"),
        embedding_norm=f"{side}.layernorm_embedding",
        final_norm=f"{side}.layer_norm" if pre_norm else None,
    )


def _bart_like(*, pre_norm: bool) -> Family:
    own, cross = _bart_attention("self_attn"), _bart_attention("encoder_attn", crosses=True)
    return Family(
        _bart_stack("encoder", own, pre_norm=pre_norm),
        decoder=_bart_stack("decoder", own, cross, pre_norm=pre_norm),
        same_sizes=(
            ("encoder_attention_heads", "decoder_attention_heads"),
            ("encoder_ffn_dim", "decoder_ffn_dim"),
        ),
        intermediate_size="encoder_ffn_dim",
    )


_T5_SELF = _t5_attention(0, "SelfAttention")
_T5 = Family(
    _t5_stack("encoder", _T5_SELF),
    decoder=_t5_stack("decoder", _T5_SELF, _t5_attention(1, "EncDecAttention", crosses=True)),
    decoder_layers="num_decoder_layers",
    intermediate_size="d_ff",
    free_head_size="d_kv",
)
_LONGT5 = Family(
    Stack("encoder.block", first_layer=_T5_FIRST),
    decoder=Stack("decoder.block", first_layer=_T5_FIRST),
    decoder_layers="num_decoder_layers",
    depth_only="its encoder's keys and values also read sums over blocks of tokens, which cannot "
    "be fitted",
    intermediate_size="d_ff",
    free_head_size="d_kv",
)
_WHISPER = Family(
    Stack("encoder.layers"),
    decoder=Stack("decoder.layers"),
    depth_only="its stream begins with the activation of a convolution, which has no basis of its "
    "own",
    intermediate_size="encoder_ffn_dim",
)
_SINES = Family(
    Stack("encoder.layers"),
    decoder=Stack("decoder.layers"),
    depth_only="its positions are sines, which are computed for a width and have no basis",
    intermediate_size="encoder_ffn_dim",
)
_WAV2VEC2 = Family(
    Stack("encoder.layers"),
    depth_only="the convolutions before its layers, which also encode positions, cannot be fitted",
)
_LLAMA_LIKE = Family(_LLAMA, free_head_size="head_dim", per_layer=("layer_types",))

FAMILIES: dict[str, Family] = {
    "bert": Family(_BERT),
    "roberta": Family(_BERT),
    "xlm-roberta": Family(_BERT),
    "camembert": Family(_BERT),
    "electra": Family(_ELECTRA, width_names=("embedding_size",)),
    "distilbert": Family(_DISTILBERT, intermediate_size="hidden_dim"),
    "mpnet": Family(_MPNET),
    "deberta-v2": Family(_DEBERTA, width_names=("pooler_hidden_size", "embedding_size")),
    "modernbert": Family(_MODERNBERT, per_layer=("layer_types",)),
    "gpt2": Family(
        _GPT2, intermediate_size="n_inner", place_matters="scale_attn_by_inverse_layer_idx"
    ),
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "vit": Family(_VIT, width_names=("pooler_output_size",)),
    "t5": _T5,
    "mt5": _T5,
    "longt5": _LONGT5,
    "bart": _bart_like(pre_norm=False),
    "mbart": _bart_like(pre_norm=True),
    "marian": _SINES,
    "pegasus": _SINES,
    "whisper": _WHISPER,
    "wav2vec2": _WAV2VEC2,
}
"""By ``config.model_type``."""

_REFUSED = {
    "albert": "all of its layers share one set of weights, so none of them can be left out, and a "
    "layer that is used many times has no single best fit",
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the declaration for a model.

    Raises:
        ValueError: there is none; gives the reason, or lists the families.
    """
    name = config.model_type
    if name in _REFUSED:
        raise ValueError(f"create_student cannot take a teacher of the type {name!r}: "
                         f"{_REFUSED[name]}.")  # fmt: skip
    if name not in FAMILIES:
        raise ValueError(
            f"create_student does not know models of the type {name!r}. It knows: "
            f"{', '.join(FAMILIES)}."
        )
    return FAMILIES[name]
