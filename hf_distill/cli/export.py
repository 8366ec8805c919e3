"""``hf-distill export``: a fine-tuned model in a format for serving, scored and timed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from hf_distill.cli.arguments import DataSource, check_split
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks import TASKS
from hf_distill.tasks.options import (
    SequenceToSequenceArguments,
    TaskArguments,
    names,
    option,
)

EXAMPLES = """\
examples:
  hf-distill export distilled --format onnx --output_dir served
  hf-distill export distilled --int8 --file dev.json --output_dir served
  hf-distill export distilled --int8 --file dev.json --calibration_file train.json \\
      --output_dir served
  hf-distill evaluate --model served --file dev.json
"""

_OF_INT8 = ("calibration_file", "tolerance")
_OF_INPUTS = ("max_length", "block_size")
_OF_DATA = (
    "split",
    "max_eval_samples",
    "batch_size",
    *(name for name in names(TaskArguments) if name not in _OF_INPUTS),
)


@dataclass
class ExportArguments:
    """Model, format and data of `export`."""

    output_dir: str = option(MISSING, help="Where to write the exported model: a new folder.")
    format: str = option(
        "onnx",
        help="The runtime that it is for. OpenVINO needs the extra `openvino`.",
        choices=["onnx", "openvino"],
    )
    int8: bool = option(
        False, help="Store weights as 8-bit integers: a quarter of the size. Needs --file."
    )
    calibration_file: str | None = option(
        help="Training data: with it, int8 settings are tried too that calibrate the scales of "
        "activations on 64 of its rows instead of finding them for each input."
    )
    tolerance: float = option(
        1.0, help="Refuse an int8 model that loses more points of the task's first metric."
    )
    file: str | None = option(help="Labelled data on which original and export are scored.")
    split: str = option("validation", help="The split of --file, if that is a folder of several.")
    max_eval_samples: int | None = option(
        help="Score on this many rows of --file only, taken evenly from all over it."
    )
    task: str | None = option(
        help="What the model does. By default what it was made for.", choices=list(TASKS)
    )
    batch_size: int = option(16, help="Inputs that are scored at a time.")


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    parser = CommandParser(
        [ExportArguments, TaskArguments],
        prog="hf-distill export",
        usage="hf-distill export MODEL --output_dir FOLDER [--int8 --file FILE] [options]",
        description="Write a fine-tuned encoder for ONNX Runtime or OpenVINO, score it on the task "
        "and time it next to the original.",
        sections=[Section("export", ["model", *names(ExportArguments)])],
        rest="task",
        hidden=names(SequenceToSequenceArguments),  # such models cannot be exported
        epilog=EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="The model: a folder or a Hub id.")
    return parser


def run(argv: Sequence[str]) -> None:
    """Export, and show what it costs and gains."""
    parser = build_parser()
    arguments, options, positional = parser.parse(argv)
    _check(arguments, parser.given(argv))

    from hf_distill.cli.loading import (
        check_model_source,
        check_paths,
        choose_task,
        load_examples,
        naming,
    )
    from hf_distill.exporting import export
    from hf_distill.files import display_name
    from hf_distill.reports.terminal import print_rows

    source = check_model_source("MODEL", positional.model)
    check_paths({"file": arguments.file, "calibration_file": arguments.calibration_file})
    task = data = calibration = None
    of_task = (arguments.task, arguments.file, *(getattr(options, name) for name in _OF_INPUTS))
    if any(one is not None for one in of_task):
        task = choose_task(arguments.task, options, {"MODEL": source})
    most = arguments.max_eval_samples
    place = DataSource(arguments.file, split=arguments.split, max_samples=most)
    check_split("split", arguments.split, ExportArguments.split, place)
    if task is not None and arguments.file is not None:
        data, _ = load_examples(task, place)
    if task is not None and arguments.calibration_file is not None:
        other = DataSource(arguments.calibration_file, option="calibration_file")
        calibration, _ = load_examples(task, other, labelled=False)
    with naming(place):
        report = export(
            source,
            arguments.output_dir,
            format=arguments.format,
            int8=arguments.int8,
            task=task,
            data=data,
            calibration_data=calibration,
            tolerance=arguments.tolerance,
            batch_size=arguments.batch_size,
        )
    runtime = {"onnx": "ONNX", "openvino": "OpenVINO"}[arguments.format]
    title = f"{display_name(source)} as {report.weights} {runtime}"
    title += f" ({report.settings})" if report.settings else ""
    print_rows(title, ["", "original", "exported"], report.rows(), numbers=True)
    sys.stdout.write(
        f"The export is {report.speed_up():.2f} times as fast as {display_name(source)}, which it "
        f"is made of, on {report.machine['processor']}, {report.machine['threads']} threads; "
        f"written to {arguments.output_dir}\n"
    )


def _check(arguments: ExportArguments, given: Mapping[str, Any]) -> None:
    """Check that options fit together, and that none is given that nothing would read."""
    if arguments.int8 and arguments.format != "onnx":
        raise ValueError(
            f"--int8 is for --format onnx, not {arguments.format}; leave one of them out."
        )
    if arguments.int8 and arguments.file is None:
        raise ValueError("--int8 needs --file: what the model loses must be measured.")
    for needed, owned in (("int8", _OF_INT8), ("file", _OF_DATA)):
        for name in owned if not getattr(arguments, needed) else ():
            if name in given:
                raise ValueError(f"--{name} is for --{needed}; add it, or leave --{name} out.")
