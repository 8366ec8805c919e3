"""The program ``hf-distill``: finds the command and turns errors into one clear message.

A command is a module of this package with a function ``run(argv)``. It is imported when it is
called for, so that ``hf-distill --help`` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from hf_distill._version import __version__
from hf_distill.cli.output import make_output_safe, warnings_said_once
from hf_distill.extras import MissingExtraError

COMMANDS = {
    "train": "train a student with the help of a teacher, or without one (--baseline)",
    "cache": "run a teacher over the training data once, for any number of trainings",
    "label": "let a language model label texts: probabilities to train a small model from",
    "sweep": "search temperature, weight, loss or any option: table and heat map, resumable",
    "create-student": "a smaller model from a teacher: fewer layers, narrower ones, or both",
    "shrink": "a slow model into a fast one: shape by measured latency, trained, compared",
    "check": "say whether a teacher can teach a student",
    "evaluate": "score a model on labelled data",
    "compare": "teacher, student alone, student distilled: one table and one plot",
    "answer": "ask a question-answering model about a text",
    "augment": "more training data: copies of texts with words replaced, answers kept",
    "export": "a model for ONNX Runtime, also with 8-bit weights: scored and timed",
    "plot": "losses and attentions of a training run as images",
    "push": "the student of a finished run to the Hub, with a model card",
    "recipes": "pairs of models with published settings and results",
    "demo": "see a model made smaller, in a few minutes on a small example",
}

EPILOG = """\
`hf-distill COMMAND --help` explains the options of a command.

first steps:
  hf-distill demo
  hf-distill train --task question-answering --baseline \\
      --student_model BIG_MODEL --train_file train.json --output_dir teacher
  hf-distill train --task question-answering --teacher_model teacher \\
      --student_model SMALL_MODEL --train_file train.json --validation_file dev.json \\
      --temperature 5 --distillation_loss_weight 1.0 --output_dir student
  hf-distill answer --model student --question "Who wrote it?" --context_file book.txt

on several GPUs: accelerate launch --num_processes 2 -m hf_distill train …
"""

UNEXPECTED_ERROR = 1
USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

# A ValueError from one of these is about what the user asked for; from anywhere else it is a bug.
# joblib raises again what its processes raised.
_PACKAGES_THAT_CHECK_INPUT = frozenset(
    ("hf_distill", "transformers", "datasets", "huggingface_hub", "accelerate", "joblib")
)


def command_module(command: str) -> Any:
    """Import the module of a command."""
    return importlib.import_module(f"hf_distill.cli.{command.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hf-distill``.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit status: 0; 2 for an error that the user can fix; 1 for an unexpected one; 130 after
        Ctrl-C; 141 if nobody reads the output any more.
    """
    make_output_safe()
    argv = list(sys.argv[1:] if argv is None else argv)
    # Everything before the command's name belongs to the program, everything after to the command.
    position = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    parser = _program_parser()
    options = parser.parse_args(argv[:position])
    if position == len(argv):
        parser.print_help()
        return USER_ERROR if argv else 0
    command = argv[position]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}."
        parser.error(f"no command {command!r}: {hint}")
    debug = options.debug or os.environ.get("HF_DISTILL_DEBUG", "0") not in ("", "0")
    try:
        module = command_module(command)
        _hide_noise()
        with warnings_said_once():
            module.run(argv[position + 1 :])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read (`… | head`) has seen enough. What Python flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        status, message = _explained(error)
        rank = os.environ.get("RANK", "0")
        process = "" if rank == "0" else f" (process {rank})"
        sys.stderr.write(f"hf-distill {command}{process}: {message}\n")
        return status
    return 0


def _hide_noise() -> None:
    """Hide what libraries show in every run and nobody can act upon."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    # Trainer asks for pinned memory on every machine.
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true")
    if logging.is_progress_bar_enabled():
        logging.disable_progress_bar()  # of weights that are read and written,
        enable_progress_bars()  # not of downloads


def _program_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<16}{text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="hf-distill",
        usage="hf-distill [--version] [--debug] COMMAND …",
        description="Knowledge distillation for the Hugging Face Trainer: make a big model's "
        f"small twin and know how good it is.\n\ncommands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-distill {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def _explained(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the message of what ended a command.

    The message alone tells what to change for files and downloads (OSError), for ValueErrors of the
    libraries that check what the user passes, and for RuntimeErrors and missing extras that this
    package raises.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "stopped by Ctrl-C."
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    message = str(error).strip()
    if (
        isinstance(error, OSError)
        or (isinstance(error, ValueError) and package in _PACKAGES_THAT_CHECK_INPUT)
        or (isinstance(error, RuntimeError | MissingExtraError) and package == "hf_distill")
    ):
        return USER_ERROR, f"error: {message or type(error).__name__}"
    first_line = message.partition("\n")[0]
    return UNEXPECTED_ERROR, (
        f"unexpected error: {type(error).__name__}: {first_line} ({frame.f_code.co_filename}, line "
        f"{line}). With HF_DISTILL_DEBUG=1 the whole traceback is shown."
    )
