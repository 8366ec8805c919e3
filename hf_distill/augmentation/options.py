"""The options of data augmentation, each defined once. Nothing here imports PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from hf_distill.tasks.options import option


@dataclass(kw_only=True)
class CandidateOptions:
    """Everything that the candidates for a word depend on."""

    word_possibilities: int = option(15, help="Candidates for each word, at most.")
    model: str = option("bert-base-uncased", help="A masked language model: a folder or a Hub id.")
    tokenizer: str | None = option(help="Its tokenizer, if it is elsewhere.")
    glove_path: str | None = option(
        help="Word vectors (GloVe's or word2vec's text format; .txt, .txt.gz, .vec, .zip) for the "
        "words that are not a token of the model. Read once; an index is left next to the file. By "
        "default the vectors of `pip install hf-distill[glove]`; without either, such words stay."
    )
    max_words: int | None = option(
        100_000, help="Read this many of the vectors, the first of the file; 0 for all."
    )
    stop_words: list[str] | str | None = option(
        help="A text file with words, one per line, that are neither replaced nor put in. By "
        "default a list of English ones; an empty file for none."
    )
    masking: str = option(
        "grouped",
        help="`grouped`: several far-apart words are predicted in one pass, 15 in 100 at most. "
        "`single`: each word in its own pass, exact and many times slower.",
        choices=["grouped", "single"],
    )
    batch_size: int = option(16, help="Windows of text that are computed at a time.")
    dtype: str = option(
        "float32",
        help="Number format of the model.",
        choices=["float32", "bfloat16", "float16"],
    )

    def for_manifest(self) -> dict[str, Any]:
        """Return the options as JSON holds them, with the words of a file of stop words."""
        from hf_distill.augmentation.words import read_stop_words

        options = {f.name: getattr(self, f.name) for f in fields(CandidateOptions)}
        if self.stop_words is not None:
            options["stop_words"] = sorted(read_stop_words(self.stop_words))
        return options


@dataclass(kw_only=True)
class AugmentationOptions(CandidateOptions):
    """How words are replaced, for all kinds of data."""

    multiplication_factor: int = option(
        20,
        help="How many versions of each text there are afterwards, the original included. Fewer "
        "where copies come out the same.",
    )
    replace_probability: float = option(0.4, help="The probability of a word to be replaced.")
    include_original: bool = option(True, help="Also write the original texts, before the copies.")
    seed: int = option(42, help="Another one gives other copies.")
    device: str | None = option(
        help="Where to compute (cpu, cuda:0, …); an accelerator if there is one."
    )
    num_proc: int = option(
        1,
        help="Processes to compute in; `accelerate launch` also shares out the work. The output is "
        "the same.",
    )
    resume: bool = option(
        False, help="Resume an interrupted run with the same options from what it had computed."
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: names the option.
        """
        check_probability(self.replace_probability)
        for name in ("multiplication_factor", "num_proc"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def copies(self) -> int:
        """How many copies of each text there are, next to the original or without it."""
        return self.multiplication_factor - bool(self.include_original)


@dataclass(kw_only=True)
class SquadAugmentationOptions(AugmentationOptions):
    """How words are replaced in SQuAD files."""

    augment_questions: bool = option(False, help="Replace words of the questions as well.")
    drop_answers: bool = option(
        False,
        help="Replace words of answers as well, and leave the answers out of the copies (those of "
        "v2.0 questions are then marked as impossible): for data that only intermediate layers are "
        "distilled on.",
    )


def check_probability(replace_probability: float) -> None:
    """Check a probability.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= replace_probability <= 1:
        raise ValueError(f"replace_probability={replace_probability} must be between 0 and 1.")
