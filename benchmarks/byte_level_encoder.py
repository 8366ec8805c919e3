r"""An encoder with a byte-level BPE tokenizer, as strong as the one it is made of.

    python benchmarks/byte_level_encoder.py --encoder MINILM_L6 --data_dir DIR --output_dir FOLDER

The tokenizer is trained on the texts of ``DIR`` (squad/, sst2/, wnut17/ and text/). Each of its
tokens has the mean of the embeddings that the encoder's own tokenizer gives the same text; all
other weights stay. So a teacher with another tokenizer can be compared with one of the same size
and pretraining, and whatever is left of a difference is that of the tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

SPECIAL = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>",
           "mask_token": "<mask>"}  # fmt: skip
VOCABULARY = 30_000


def texts(folder: Path) -> Iterator[str]:
    """Yield the training texts, and the running text."""
    for article in json.loads(_read(folder / "squad/train-v1.1.json.gz"))["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (question["question"] for question in paragraph["qas"])
    for line in _read(folder / "sst2/train.tsv.gz").splitlines()[1:]:
        yield line.rpartition("\t")[0]
    for sentence in _read(folder / "wnut17/train.conll.gz").split("\n\n"):
        yield " ".join(line.split("\t")[0] for line in sentence.splitlines())
    for path in sorted((folder / "text").glob("*.gz")):
        yield from _read(path).splitlines()


def _read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train a tokenizer like RoBERTa's, but without case, as that of the encoder."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts(folder), trainer)
    begin, end = SPECIAL["cls_token"], SPECIAL["sep_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(name, made.token_to_id(name)) for name in (begin, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=512, add_prefix_space=True,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"], **SPECIAL,
    )  # fmt: skip


def embed(encoder: Any, own: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Give the encoder another vocabulary, each token with what its text had before."""
    before = encoder.get_input_embeddings().weight.detach().clone()
    vocabulary = own.get_vocab()
    after = before.mean(0).repeat(len(tokenizer), 1)
    for name, token in SPECIAL.items():
        after[tokenizer.convert_tokens_to_ids(token)] = before[getattr(own, f"{name}_id")]
    for token, number in tokenizer.get_vocab().items():
        if token not in SPECIAL.values():
            text = tokenizer.backend_tokenizer.decoder.decode([token])
            pieces = own.tokenize(text)
            if not token.startswith("Ġ") and pieces and re.match(r"\w", text):  # inside of a word
                inner = f"##{pieces[0]}"
                pieces[0] = inner if inner in vocabulary else pieces[0]
            numbers = [vocabulary[piece] for piece in pieces if piece != own.unk_token]
            if numbers:
                after[number] = before[torch.tensor(numbers)].mean(0)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.get_input_embeddings().weight.data = after
    encoder.config.pad_token_id = tokenizer.pad_token_id
    return encoder


def main() -> None:
    """Make the tokenizer and the encoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="a BERT encoder without case")
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--output_dir", required=True)
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.data_dir)
    encoder: Any = AutoModel.from_pretrained(options.encoder, dtype=torch.float32)
    made = embed(encoder, AutoTokenizer.from_pretrained(options.encoder), tokenizer)
    made.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
