"""``hf-distill augment``: more training data, by replacing words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from hf_distill.augmentation.options import AugmentationOptions, SquadAugmentationOptions
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import names, option

EXAMPLES = """\
examples:
  hf-distill augment --squad_path train.json --output_path augmented.json
  hf-distill augment --train_file train.tsv --text_columns sentence --output_path more.tsv
  hf-distill augment --train_file train.conll --text_columns tokens --tag_column tags \\
      --output_path more.conll --model dslim/bert-base-NER
  accelerate launch --num_processes 2 -m hf_distill augment --squad_path …
"""
OF_SQUAD = ("augment_questions", "drop_answers")
OF_TABLES = ("text_columns", "tag_column", "id_column")


@dataclass(kw_only=True)
class AugmentArguments(SquadAugmentationOptions):
    """The options of the command: those of the functions, and the data."""

    squad_path: str | None = option(
        help="A file in the layout of SQuAD v1.1 or v2.0, .json or .json.gz."
    )
    train_file: str | None = option(
        help="Data of another task: .csv, .tsv, .jsonl, .json, .parquet, .txt or .conll (all but "
        ".parquet also with .gz), or a folder written by `Dataset.save_to_disk`."
    )
    text_columns: list[str] | None = option(
        help="The columns of --train_file with texts (two for sentence pairs) or with lists of "
        "words. All others are carried along."
    )
    tag_column: str | None = option(
        help="The column with the tags of a list of words; words with a tag other than `O` are "
        "kept."
    )
    id_column: str | None = option(
        help="A column that names the rows: the copies of `q` are `q-aug1` and so on (`q-aug2.1` "
        "where some rows are copies already), those of whole numbers the numbers after the "
        "largest. By default `id`, if there is such a column."
    )
    output_path: str = option(
        MISSING, help="The file to write. It appears there when it is whole, not before."
    )

    def __post_init__(self) -> None:
        """Check the options, that there is one file, and that they are for it."""
        super().__post_init__()
        self.max_words = self.max_words or None
        if (self.squad_path is None) == (self.train_file is None):
            raise ValueError("choose the data: either --squad_path or --train_file.")
        if self.train_file is not None and not self.text_columns:
            raise ValueError("--train_file needs --text_columns: the columns to replace words in.")
        data = "--train_file" if self.squad_path is None else "--squad_path"
        for name in OF_SQUAD if self.squad_path is None else OF_TABLES:
            if getattr(self, name):
                raise ValueError(f"--{name} does not go with {data}.")

    def of(self, options: type) -> dict[str, Any]:
        """Return the options of a dataclass as keyword arguments."""
        return {f.name: getattr(self, f.name) for f in fields(options)}


def build_parser() -> CommandParser:
    return CommandParser(
        [AugmentArguments],
        prog="hf-distill augment",
        usage="hf-distill augment (--squad_path FILE | --train_file FILE --text_columns NAME …) "
        "--output_path FILE [options]",
        description="Write copies of texts in which words are replaced by others that fit there: "
        "those that a masked language model proposes, or the nearest by their vectors. Answers "
        "and named entities are kept.",
        sections=[
            Section("data", ["squad_path", "train_file", *OF_TABLES, "output_path"]),
            Section("question answering", OF_SQUAD),
            Section("words", names(AugmentationOptions)),
        ],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Augment a file."""
    (arguments,) = build_parser().parse(argv)
    if arguments.squad_path is not None:
        _augment_squad(arguments)
    else:
        _augment_table(arguments)


def _augment_squad(arguments: AugmentArguments) -> None:
    from hf_distill.augmentation import augment_squad

    summary = augment_squad(
        str(arguments.squad_path), arguments.output_path, **arguments.of(SquadAugmentationOptions)
    )
    if summary is not None:
        sys.stdout.write(
            f"{summary.written_questions:,} questions in {arguments.output_path}: those of "
            f"{summary.paragraphs:,} paragraphs and {summary.copies:,} copies, with "
            f"{summary.replaced:,} words replaced; {summary.duplicates:,} copies that were like "
            "the original or another copy were left out.\n"
        )


def _augment_table(arguments: AugmentArguments) -> None:
    from hf_distill.augmentation import augment_dataset
    from hf_distill.augmentation.raw_rows import RawRows
    from hf_distill.augmentation.tables import (
        check_rows,
        check_table_path,
        check_target,
        write_table,
    )
    from hf_distill.tasks.tables import load_table

    source = Path(str(arguments.train_file)).expanduser()
    target = Path(arguments.output_path).expanduser()
    check_table_path(arguments.output_path)
    check_target(target, source)
    table = load_table(str(arguments.train_file), keep_line_breaks=True)
    text_columns = arguments.text_columns or []
    columns = [*text_columns, arguments.tag_column or "", arguments.id_column or "id"]
    raw = RawRows(source, table, columns) if RawRows.can_carry(source, target) else None
    if raw is None:
        check_rows(table, target)
    work = target.with_name(f".{target.name}.parts")
    augmented = augment_dataset(
        table if raw is None else raw.table(),
        text_columns,
        tag_column=arguments.tag_column,
        id_column=arguments.id_column,
        work_folder=work,
        **arguments.of(AugmentationOptions),
    )
    if augmented is not None:
        if raw is None:
            write_table(augmented, target)
        else:
            raw.write(augmented, target)
        work.rmdir()
        sys.stdout.write(
            f"{len(augmented):,} rows in {arguments.output_path}, made of {len(table):,}.\n"
        )
