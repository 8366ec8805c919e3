"""``hf-distill check``: can this teacher teach this student?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_distill.cli.arguments import EvaluationDataArguments, task_option, task_sections
from hf_distill.cli.output import print_json
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import TaskArguments, names, option

if TYPE_CHECKING:
    from hf_distill.cli.teacher_column import ColumnSource
    from hf_distill.compatibility import PairReport
    from hf_distill.compatibility.findings import Finding

EXAMPLES = """\
examples:
  hf-distill check TEACHER STUDENT
  hf-distill check TEACHER STUDENT --file dev.csv
  hf-distill check column:probabilities STUDENT --task text-classification --file train.jsonl
"""
REFUSED = 1
LABELS = ("labels", "start_positions", "end_positions")
_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@dataclass
class CheckArguments(EvaluationDataArguments):
    """The options of `check`."""

    task: str | None = task_option()
    file: str | None = option(
        help="Labelled data to try the teacher on: is it better than always giving the most "
        "frequent label?"
    )
    max_eval_samples: int | None = option(
        256, help="Try the teacher on this many examples, taken evenly from all over the data."
    )
    json: bool = option(False, help="Print JSON.")

    def __post_init__(self) -> None:
        """Check that there is one kind of data."""
        if self.file is not None and self.dataset_name is not None:
            raise ValueError("pass either --file or --dataset_name, not both.")
        self.check_use({"split": self.source})


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [CheckArguments, TaskArguments],
        prog="hf-distill check",
        usage="hf-distill check TEACHER STUDENT [--task TASK] [--file FILE] [options]",
        description="Say whether a teacher can teach a student, before anything is trained: task, "
        "labels, vocabulary,\ntokenizer, lengths, and whether the teacher was trained at all. The "
        "exit status is 1 if it cannot.\n`hf-distill train` checks the same.",
        sections=[
            Section("models", ["teacher", "student"]),
            Section("check", ["task", "file", *names(CheckArguments)]),
            *task_sections(),
        ],
        positional={
            "teacher": "The fine-tuned teacher: a folder or a Hub id; or `column:NAME`, a column "
            "of the data (`column:NAME:logits`, `column:NAME:log_probabilities`), all rows of "
            "which are read.",
            "student": "The student: a folder or a Hub id. It need not be fine-tuned.",
        },
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Check a pair, show what was found, and end with status 1 if it is refused."""
    arguments, task_options, pair = build_parser().parse(argv)

    from hf_distill.cli.loading import check_model_source, check_paths
    from hf_distill.cli.teacher_column import ColumnSource
    from hf_distill.compatibility import check_pair

    column = ColumnSource.of(pair.teacher)
    teacher = pair.teacher if column else check_model_source("TEACHER", pair.teacher)
    student = check_model_source("STUDENT", pair.student)
    check_paths({"file": arguments.file})
    has_data = arguments.file is not None or arguments.dataset_name is not None
    if column is not None:
        if not has_data:
            raise ValueError(f"{teacher} is a column of the data: pass --file or --dataset_name.")
        report = _check_column(arguments, task_options, column, student)
    else:
        batches: Any = ()
        too_long = _check_length(arguments, task_options, teacher, student)
        if has_data and not too_long:
            batches = _batches(arguments, task_options, teacher, student)
        report = check_pair(teacher, student, task=arguments.task, batches=batches)
        report = replace(report, findings=(*report.findings, *too_long))
    if arguments.json:
        content = {
            "task": report.task,
            "ok": report.ok,
            "findings": list(map(asdict, report.findings)),
        }
        print_json(content)
    else:
        _show(report, teacher)
    if not report.ok:
        raise SystemExit(REFUSED)


def _check_column(
    arguments: CheckArguments, task_options: TaskArguments, column: ColumnSource, student: str
) -> PairReport:
    from hf_distill.cli.loading import choose_task, load_examples
    from hf_distill.cli.teacher_column import check_column, check_column_task

    task = choose_task(arguments.task, task_options, {})
    check_column_task(task, column.name)
    every = arguments.source._replace(max_samples=None)
    examples, labelled = load_examples(task, every, or_unlabelled=True, teacher_column=column.name)
    return check_column(task, examples, column, student, labelled=labelled)


def _check_length(
    arguments: CheckArguments, task_options: TaskArguments, teacher: str, student: str
) -> list[Finding]:
    """Check that the student takes inputs of the length that it would be trained with."""
    from hf_distill.cli.loading import choose_task, load_meta_model, load_tokenizer
    from hf_distill.compatibility.findings import error

    try:
        task = choose_task(arguments.task, task_options, {"TEACHER": teacher})
        model, tokenizer = load_meta_model("STUDENT", student, task), load_tokenizer("", student)
    except (OSError, ValueError):  # the check of the pair tells
        return []
    try:
        task.length(tokenizer, model)
    except ValueError as problem:
        return [error("student's length", str(problem))]
    return []


def _batches(
    arguments: CheckArguments, task_options: TaskArguments, teacher: str, student: str
) -> Callable[[Any], Iterator[Any]]:
    """Load labelled data, of which batches are made once the student, whose labels they have, is.

    Without ``--task`` it is set to the teacher's.
    """
    from hf_distill.alignment import BothEncodings, find_alignment
    from hf_distill.cli.loading import (
        choose_task,
        load_examples,
        load_teacher_reader,
        load_tokenizer,
        naming,
    )
    from hf_distill.compatibility import input_names

    task = choose_task(arguments.task, task_options, {"TEACHER": teacher})
    arguments.task = task.name
    examples, _ = load_examples(task, arguments.source)

    def batches(model: Any) -> Iterator[Any]:
        tokenizer = load_tokenizer("STUDENT", student)
        workers = arguments.preprocessing_num_workers
        reader = load_teacher_reader([teacher], task, tokenizer)
        with naming(arguments.source):
            features, _ = task.features(
                examples, tokenizer, model, training=True, num_proc=workers, teacher=reader
            )
        known = {*input_names(model), "token_type_ids", *LABELS}
        collator = task.data_collator(tokenizer, model)
        if reader is not None:
            alignment = find_alignment(task.head(model.config), tokenizer, reader.tokenizer)
            assert alignment is not None  # a reader always has one
            known |= alignment.columns
            collator = BothEncodings(collator, reader.tokenizer, alignment)
        features = features.remove_columns([n for n in features.column_names if n not in known])
        for begin in range(0, len(features), 16):
            rows = features.select(range(begin, min(begin + 16, len(features))))
            yield collator(list(rows))

    return batches


def _show(report: PairReport, teacher: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from hf_distill.reports.terminal import print_rows

    rows = [(f.about, (f.status, _STYLES[f.status]), f.message) for f in report.findings]
    print_rows("", ("", "", "what was found, and what to change"), rows, lines=True)
    verdict = "The teacher can teach the student." if report.ok else "The pair is refused."
    Console().print(Text(verdict, style="bold"))
    if any(f.about == "tokenizer" and f.status == "error" for f in report.findings):
        _suggest_students(teacher)


def _suggest_students(teacher: str) -> None:
    """Say how to make a student, and name pretrained models with the teacher's tokenizer."""
    from hf_distill.cli.loading import load_tokenizer
    from hf_distill.loading import read_config
    from hf_distill.recipes import family_of
    from hf_distill.students.families import FAMILIES

    config = read_config(teacher, "teacher")
    if config.model_type in FAMILIES:
        sys.stdout.write(
            "No student? Create one from the teacher: hf-distill create-student "
            f"{teacher} --num_hidden_layers "
            f"{max(1, config.num_hidden_layers // 2)} --output_dir student\n"
        )
    family = family_of(load_tokenizer("TEACHER", teacher), config.model_type)
    if family is None:
        return
    sys.stdout.write(f"Students that share its tokenizer ({family.title}):\n")
    for student in family.all_students():
        sys.stdout.write(
            f"  {student.id} ({student.layers} layers of {student.width}, "
            f"{student.millions:g} M parameters)\n"
        )
