"""``hf-distill create-student``: a student of any size from a fine-tuned teacher."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from hf_distill.cli.arguments import FORMATS, HubDataArguments, task_option, task_sections
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import TaskArguments, names, option

EXAMPLES = """\
examples:
  three of the teacher's layers
    hf-distill create-student TEACHER --num_hidden_layers 3 --output_dir student

  half as wide, fitted to the teacher on the inputs of its training data
    hf-distill create-student TEACHER --hidden_size 192 \\
        --calibration_file train.json --output_dir student

  then
    hf-distill train --teacher_model TEACHER --student_model student --train_file train.json \\
        --output_dir distilled
"""
_RENAMED = {"calibration_data": "calibration_file", "vocabulary_from": "trim_vocabulary"}


@dataclass(kw_only=True)
class CreateStudentArguments(HubDataArguments):
    """The student, and the data that it is fitted on."""

    output_dir: str = option(MISSING, help="Where the student goes, with its tokenizer.")
    num_hidden_layers: int | None = option(help="Layers of the student; by default all.")
    layers: str | None = option(
        help="Which of the teacher's layers to keep: uniform (the default), first, last, auto "
        "(those that its outputs on the calibration data miss most), or numbers from 0, such as "
        "0,2,4."
    )
    hidden_size: int | None = option(
        help="Width of the student: a multiple of the size of a head, in most families."
    )
    intermediate_size: int | None = option(
        help="Neurons of each feed-forward network; by default they fall with the width."
    )
    num_attention_heads: int | None = option(
        help="Heads of each layer; by default they fall with the width."
    )
    calibration_file: str | None = option(
        help="Inputs that the student is fitted on, needed for another width and --layers auto: a "
        f".txt file with a text per line, or data of the teacher's task ({FORMATS}). Labels are "
        "not used."
    )
    split: str = option("train", help="The split of --dataset_name.")
    calibration_tokens: int = option(8192, help="How many tokens of it to use.")
    initialization: str = option(
        "auto",
        help="copy (layers only), least_squares, or auto: copies for fewer layers alone, least "
        "squares as soon as a width changes.",
        choices=["auto", "least_squares", "copy"],
    )
    trim_vocabulary: str | None = option(
        help="Keep the tokens of these texts and no others: a .txt file with a text per line. The "
        "teacher's ids are mapped in training."
    )
    dropout: float | None = option(
        help="Every probability of dropout in the student's configuration; by default they are the "
        "teacher's. 0 makes training faster, and a student that learns soft targets needs none."
    )
    task: str | None = task_option()
    seed: int = option(0, help="Of the choice of the calibration data.")

    def __post_init__(self) -> None:
        """Check that there is one source of data."""
        if self.calibration_file is not None and self.dataset_name is not None:
            raise ValueError("pass either --calibration_file or --dataset_name, not both.")
        self.check_use({"split": self.source_of(self.calibration_file, self.split)})
        if self.trim_vocabulary is not None and Path(self.trim_vocabulary).suffix != ".txt":
            raise ValueError(
                f"--trim_vocabulary {self.trim_vocabulary} is not a .txt file with a text per line."
            )


def build_parser() -> CommandParser:
    """Build the parser of the command."""
    parser = CommandParser(
        [CreateStudentArguments, TaskArguments],
        prog="hf-distill create-student",
        usage="hf-distill create-student TEACHER --output_dir FOLDER [options]",
        description="Make a student from a fine-tuned teacher: fewer layers, narrower layers, or "
        "both. It has the\nteacher's tokenizer, head and labels, and what it knows already is "
        "what `hf-distill train` starts from.",
        sections=[
            Section("student", ["teacher", *names(CreateStudentArguments)]),
            *task_sections(),
        ],
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "teacher", metavar="TEACHER", help="The fine-tuned teacher: a folder or a Hub id."
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Create a student and write it."""
    arguments, task_options, positional = build_parser().parse(argv)

    from hf_distill.cli.loading import as_typed, check_model_source, check_paths, load_tokenizer
    from hf_distill.cli.run_folder import make_output_folder
    from hf_distill.loading import copy_processor
    from hf_distill.students import create_student, save_student, tokenizer_of
    from hf_distill.students.calibration import read_texts
    from hf_distill.students.create import load_whole
    from hf_distill.students.sentence_embeddings import load_sentence_transformer

    source = check_model_source("TEACHER", positional.teacher)
    check_paths({n: getattr(arguments, n) for n in ("calibration_file", "trim_vocabulary")})
    make_output_folder(arguments.output_dir)
    folder = Path(arguments.output_dir)
    found = [file.name for name in ("config.json", "*.safetensors") for file in folder.glob(name)]
    if found:
        raise ValueError(
            f"--output_dir {folder} holds a model already ({min(found)}): choose "
            "another folder, or delete it."
        )
    tokenizer = load_tokenizer("TEACHER", source)
    teacher = load_sentence_transformer(source)
    data: dict[str, Any] = {}
    if teacher is None:
        teacher = load_whole(source)
        data["processing_class"] = tokenizer
    if arguments.calibration_file is not None or arguments.dataset_name is not None:
        data |= _calibration(arguments, task_options, source, teacher, tokenizer)
    if arguments.trim_vocabulary is not None:
        file = arguments.trim_vocabulary
        data["vocabulary_from"] = read_texts(file, "--trim_vocabulary")
        if not data["vocabulary_from"]:
            raise ValueError(f"--trim_vocabulary {file} has no texts.")
    try:
        student = create_student(
            teacher,
            num_hidden_layers=arguments.num_hidden_layers,
            layers=_layers(arguments.layers),
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.intermediate_size,
            num_attention_heads=arguments.num_attention_heads,
            calibration_tokens=arguments.calibration_tokens,
            initialization=arguments.initialization,
            dropout=arguments.dropout,
            seed=arguments.seed,
            **data,
        )
    except ValueError as error:
        raise ValueError(as_typed(str(error), vars(arguments), _RENAMED)) from error
    copy_processor(source, folder)
    record = save_student(student, arguments.output_dir, tokenizer_of(student) or tokenizer)
    sizes = record["sizes"]
    share = record["parameters"] / sum(p.numel() for p in teacher.parameters())
    sys.stdout.write(
        f"{arguments.output_dir}: {sizes['num_hidden_layers']} layers of {sizes['hidden_size']} "
        f"(of the teacher's layers {', '.join(map(str, record['layers']))}), "
        f"{record['parameters']:,} parameters, {share:.0%} of the teacher's.\n"
    )


def _layers(text: str | None) -> str | list[int] | None:
    if text is None or not re.fullmatch(r"[0-9]+( *, *[0-9]+)*", text):
        return text
    return [int(number) for number in text.split(",")]


def _calibration(
    arguments: Any, task_options: Any, source: str, teacher: Any, tokenizer: Any
) -> dict[str, Any]:
    """Return the data, and what makes batches of it."""
    file = arguments.calibration_file
    if file is not None and Path(file).suffix == ".txt":
        return {"calibration_data": file}
    from hf_distill.cli.loading import choose_task, load_examples, naming

    task = choose_task(arguments.task, task_options, {"TEACHER": source})
    place = arguments.source_of(file, arguments.split, option="calibration_file")
    examples, labelled = load_examples(task, place, or_unlabelled=True)
    # Rows are drawn again by tokens; a row has at least one.
    most = min(len(examples), arguments.calibration_tokens)
    examples = examples.shuffle(seed=arguments.seed).select(range(most))
    with naming(place):
        encoded = task.features(
            examples,
            tokenizer,
            teacher,
            training=True,
            labelled=labelled,
            num_proc=arguments.preprocessing_num_workers,
        )
    return {
        "calibration_data": encoded.features,
        "data_collator": task.data_collator(tokenizer, teacher),
    }
