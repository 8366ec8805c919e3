"""``hf-distill augment``: more training data, by replacing words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hf_distill.cli.augment_arguments import (
    AugmentArguments,
    SquadOptions,
    SubstitutionArguments,
    TableArguments,
)
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import names

EXAMPLES = """\
examples:
  hf-distill augment --squad_path train.json --output_path augmented.json
  hf-distill augment --train_file train.tsv --text_columns sentence --output_path more.tsv
  hf-distill augment --train_file train.conll --text_columns tokens --tag_column tags \\
      --output_path more.conll --model dslim/bert-base-NER
  accelerate launch --num_processes 2 -m hf_distill augment --squad_path …
"""


def build_parser() -> CommandParser:
    """The parser of the command."""
    return CommandParser(
        [AugmentArguments],
        prog="hf-distill augment",
        usage="hf-distill augment (--squad_path FILE | --train_file FILE --text_columns NAME …) "
        "--output_path FILE [options]",
        description="Write copies of texts in which words are replaced by others that fit there: "
        "those that a masked language model proposes, or the nearest by their vectors. Answers "
        "and named entities are kept.",
        sections=[
            Section("data", ["squad_path", *names(TableArguments), "output_path"]),
            Section("question answering", names(SquadOptions)),
            Section("words", names(SubstitutionArguments)),
        ],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Augment a file.

    Args:
        argv: the options, without the command's name.

    Raises:
        ValueError: an option or the data cannot be used.
        OSError: a file or a download failed.
        RuntimeError: a process of ``--num_proc`` failed.
    """
    (arguments,) = build_parser().parse(argv)
    if arguments.squad_path is not None:
        _augment_squad(arguments)
    else:
        _augment_table(arguments)


def _augment_squad(arguments: AugmentArguments) -> None:
    from hf_distill.augmentation import augment_squad

    options = _options(arguments, SubstitutionArguments, SquadOptions)
    if arguments.stop_words is not None:
        options["stop_words"] = arguments.stop_words
    summary = augment_squad(str(arguments.squad_path), **options)
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
    from hf_distill.augmentation.stop_words import load_stop_words
    from hf_distill.augmentation.tables import check_table_path, write_table
    from hf_distill.tasks.tables import load_table

    check_table_path(arguments.output_path)
    table = load_table(str(arguments.train_file))
    source, target = (
        Path(path).expanduser() for path in (str(arguments.train_file), arguments.output_path)
    )
    columns = [
        *(arguments.text_columns or ()),
        *([] if arguments.tag_column is None else [arguments.tag_column]),
        arguments.id_column or "id",
    ]
    raw = RawRows(source, table, columns) if RawRows.can_carry(source, target) else None
    options = _options(arguments, SubstitutionArguments)
    del options["output_path"]
    if arguments.stop_words is not None:
        options["stop_words"] = load_stop_words(arguments.stop_words)
    work = target.with_name(f".{target.name}.parts")
    augmented = augment_dataset(
        table if raw is None else raw.table(),
        arguments.text_columns or [],
        tag_column=arguments.tag_column,
        id_column=arguments.id_column,
        work_folder=work,
        **options,
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


def _options(arguments: AugmentArguments, *groups: type) -> dict[str, Any]:
    """The options of some dataclasses, as the functions of the package take them."""
    values = asdict(arguments)
    options = {f.name: values[f.name] for group in groups for f in fields(group)}
    options["max_words"] = options["max_words"] or None
    return options
