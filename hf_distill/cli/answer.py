"""``hf-distill answer``: a question, a text, and what the model finds in it."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_distill.cli.output import print_json
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import AnswerSpanArguments, option

EXAMPLES = """\
examples:
  hf-distill answer --model distilled --question "Where does Paris lie?" \\
      --context "Paris, the capital of France, lies on the Seine."
  hf-distill answer --model distilled --question "Who wrote it?" --context_file book.txt --top_k 3
  cat book.txt | hf-distill answer --model distilled --question "Who wrote it?" --json
"""

NO_ANSWER = "(the text does not answer this)"


@dataclass
class AnswerArguments:
    """The options of `answer`."""

    model: str = option(MISSING, help="A question-answering model: a folder or a Hub id.")
    question: str = option(MISSING, help="The question.")
    context: str | None = option(help="The text to answer it from.")
    context_file: str | None = option(
        help="A text file (UTF-8) to answer it from; `-`, or neither of the two, for the standard "
        "input."
    )
    top_k: int = option(1, help="How many answers to give.")
    json: bool = option(
        False, help="Print JSON: text, score and place (characters) of each answer."
    )
    always_answer: bool = option(
        False, help="Leave out the possibility that the text does not answer the question."
    )
    max_length: int = option(384, help="Most tokens in a window, question included.")
    device: str | None = option(
        help="Where to compute (cpu, cuda:0, …); an accelerator if there is one."
    )

    def __post_init__(self) -> None:
        """Check that there is one text."""
        if self.context is not None and self.context_file is not None:
            raise ValueError("pass either --context or --context_file, not both.")


def build_parser() -> CommandParser:
    basics = (
        "model", "question", "context", "context_file", "top_k", "json", "always_answer",
        "no_answer_threshold",
    )  # fmt: skip
    return CommandParser(
        [AnswerArguments, AnswerSpanArguments],
        prog="hf-distill answer",
        usage="hf-distill answer --model MODEL --question TEXT "
        "[--context TEXT | --context_file FILE] [options]",
        description="Find the answer to a question in a text of any length.",
        sections=[Section("question and text", basics)],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Answer a question and print the answers."""
    arguments, spans = build_parser().parse(argv)
    context = _read_context(arguments)

    from hf_distill.cli.loading import check_model_source, load_tokenizer, load_trained_model
    from hf_distill.tasks import create_task
    from hf_distill.tasks.options import TaskArguments
    from hf_distill.tasks.question_answering import QuestionAnswerer
    from hf_distill.tasks.text_files import half_character

    for name, text in (("question", arguments.question), ("context", context)):
        half = half_character(text)
        if half:
            raise ValueError(f"the {name} is not text in UTF-8: it holds {half}.")
    from hf_distill.reports.terminal import print_rows

    source = check_model_source("model", arguments.model)
    task = create_task("question-answering", TaskArguments())
    tokenizer = load_tokenizer("model", source)
    model = load_trained_model("model", source, task)
    answers = QuestionAnswerer(model, tokenizer, device=arguments.device)(
        question=arguments.question,
        context=context,
        top_k=arguments.top_k,
        max_length=arguments.max_length,
        doc_stride=spans.doc_stride,
        max_answer_length=spans.max_answer_length,
        no_answer_threshold=None if arguments.always_answer else spans.no_answer_threshold,
    )
    if arguments.json:
        rows = [
            {"text": one.text, "score": one.score, "start": one.start, "end": one.end}
            for one in answers
        ]
        content = {"question": arguments.question, "answers": rows}
        print_json(content)
    elif arguments.top_k == 1:
        sys.stdout.write(f"{answers[0].text or NO_ANSWER}  (score {answers[0].score:.2f})\n")
    else:
        shown = [(one.text or NO_ANSWER, f"{one.score:.3f}") for one in answers]
        print_rows(arguments.question, ("answer", "score"), shown)


def _read_context(arguments: AnswerArguments) -> str:
    if arguments.context is not None:
        return arguments.context
    file = arguments.context_file
    if file is None or file == "-":
        if sys.stdin.isatty():
            raise ValueError(
                "there is no text to answer from: pass --context or --context_file, or pipe it in."
            )
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(newline="")
        text, name = sys.stdin.read(), "the standard input"
    else:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"--context_file {file}: there is no such file.")
        try:
            # Line breaks as they are: the places of the answers count them.
            text, name = path.read_bytes().decode("utf-8"), f"--context_file {file}"
        except UnicodeDecodeError as error:
            raise ValueError(f"--context_file {file} is not a text in UTF-8: {error}.") from error
    if not text.strip():
        raise ValueError(f"there is no text in {name}.")
    return text
