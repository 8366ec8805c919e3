"""``hf-distill shrink``: from a slow model to a fast one that is measured, in one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from hf_distill.cli.arguments import config_option, task_option, task_sections, use_cpu_option
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.cli.train_arguments import TrainDataArguments
from hf_distill.tasks.options import TaskArguments, names, option

EXAMPLES = """\
examples:
  what would be done, and how long it would take
    hf-distill shrink --teacher_model teacher --train_file train.json \\
        --validation_file dev.json --speedup 2 --output_dir small --dry_run

  do it; the same command again continues after an interruption
    hf-distill shrink --teacher_model teacher --train_file train.json \\
        --validation_file dev.json --speedup 2 --output_dir small

  in two hours, with the same student trained on labels alone next to it
    hf-distill shrink … --budget 2h --baseline
"""


USUAL_TOLERANCE = 1.0


@dataclass
class ShrinkArguments:
    """The teacher, and what its student is to reach."""

    teacher_model: str = option(
        MISSING, help="The fine-tuned model to make smaller: a folder or a Hub id."
    )
    output_dir: str = option(
        MISSING,
        help="Where everything goes: the plan, the student, its exports, the comparison. The same "
        "command again continues there.",
    )
    task: str | None = task_option()
    speedup: float | None = option(
        help="How many times as fast as the teacher the student is to be, one input at a time on "
        "this machine. By default 2, if nothing else is asked for."
    )
    max_parameters: int | None = option(help="The most parameters, embeddings included.")
    max_size_mb: float | None = option(help="The most megabytes of weights.")
    num_hidden_layers: int | None = option(help="Layers of the student, set by hand.")
    hidden_size: int | None = option(help="Width of the student, set by hand.")
    intermediate_size: int | None = option(
        help="Neurons of each feed-forward network, set by hand."
    )
    num_attention_heads: int | None = option(help="Heads of each layer, set by hand.")
    augment: int | None = option(
        help="Train on so many versions of each text, the original included, in which words are "
        "replaced (`hf-distill augment`): question answering, or a table whose --text_column (and "
        "--label_column of tags) is named."
    )
    augment_model: str | None = option(
        help="The masked language model that proposes words: a folder or a Hub id. By default "
        "bert-base-uncased."
    )
    baseline: bool = option(
        False,
        help="Also train the same student on labels alone, for as many steps, to compare with.",
    )
    export: bool = option(
        True,
        help="Also write the student for ONNX Runtime, and with 8-bit weights if there is a "
        "--validation_file. What cannot be exported is reported, and the student stays.",
    )
    tolerance: float = option(
        USUAL_TOLERANCE, help="Points of the task's first metric that the 8-bit export may lose."
    )
    push_to_hub: bool = option(False, help="Push the student at the end, with its card.")
    hub_model_id: str | None = option(help="Where to, such as me/small-reader.")
    private: bool = option(False, help="Make a new repository private.")
    dry_run: bool = option(
        False,
        help="Print the plan and stop. It is kept in --output_dir: the same command without this "
        "option follows it.",
    )
    overwrite_output_dir: bool = option(
        False,
        help="Make a new plan, and then delete what an earlier one has left in --output_dir. To "
        "continue after an interruption, leave it out.",
    )
    config: str | None = config_option()

    def __post_init__(self) -> None:
        """Check where the student is pushed to, and the tolerance."""
        if self.push_to_hub != (self.hub_model_id is not None):
            raise ValueError("--push_to_hub and --hub_model_id go together: pass both.")
        if self.private and not self.push_to_hub:
            raise ValueError("--private is for --push_to_hub; add it, or leave --private out.")
        if not self.tolerance >= 0:
            raise ValueError(f"--tolerance {self.tolerance} must be at least 0.")


@dataclass
class ShrinkTrainingArguments:
    """Options of the trainings, which the plan decides unless they are given."""

    budget: str | None = option(
        help="How long all of it may take, as it is predicted, such as 2h, 90m or 1h 30m."
    )
    num_train_epochs: float | None = option(
        help="Passes over the training data instead, of all stages together. By default 6."
    )
    hidden_states_share: float | None = option(
        help="The share of the steps in which the student learns hidden states, before the "
        "prediction layer. By default 0: it begins in its teacher's."
    )
    learning_rate: float | None = option(help="Of all stages.")
    temperature: float | None = option(help="Of the prediction stage.")
    distillation_loss_weight: float | None = option(
        help="Of the prediction stage; 1 does not use labels."
    )
    dropout: float | None = option(
        help="Of the student while it learns. By default 0: steps are faster, and it needs none."
    )
    per_device_train_batch_size: int | None = option(help="Rows of a step.")
    cache_teacher_outputs: bool | None = option(
        help="Compute the teacher's logits once and store them. By default where that pays."
    )
    bf16: bool | None = option(
        help="Train in bfloat16. By default where that is clearly faster, which is measured."
    )
    teacher_check_samples: int = option(
        256,
        help="Try the teacher on this many labelled rows before anything is timed; one that is "
        "worse than the most frequent label is refused. 0 leaves it out.",
    )
    seed: int = option(42, help="Of the student, the order of the data and dropout.")
    use_cpu: bool = use_cpu_option()

    def __post_init__(self) -> None:
        """Check what cannot be out of range."""
        if self.teacher_check_samples < 0:
            raise ValueError(
                f"--teacher_check_samples {self.teacher_check_samples} must be 0 or more."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed {self.seed} must be from 0 to 2**32 - 1.")


def build_parser(*, raises: bool = False) -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [ShrinkArguments, ShrinkTrainingArguments, TrainDataArguments, TaskArguments],
        prog="hf-distill shrink",
        usage="hf-distill shrink --teacher_model MODEL --train_file FILE [--validation_file FILE]\n"
        "                         --speedup X --output_dir FOLDER [options]",
        description="Make a smaller, faster model from a fine-tuned one: choose its shape by "
        "measured latencies,\ncreate it, teach it, compare it with the teacher. "
        "Everything that is decided is printed\nwith its reason, and can be set by hand.",
        sections=[
            Section("teacher, target and output", names(ShrinkArguments)),
            Section("data", ["train_file", "validation_file", *names(TrainDataArguments)]),
            Section("training, decided by the plan", names(ShrinkTrainingArguments)),
            *task_sections(),
        ],
        epilog=EXAMPLES,
        raises=raises,
    )


def run(argv: Sequence[str]) -> None:
    """Make the plan, show it and follow it."""
    parsed = build_parser().parse(argv)

    from hf_distill.cli.continuing import continued_by
    from hf_distill.cli.shrink_request import ShrinkRequest
    from hf_distill.cli.shrink_run import run_shrink

    request = ShrinkRequest(*parsed)
    with continued_by("repeat the command", overwrites=request.arguments.overwrite_output_dir):
        run_shrink(request)
