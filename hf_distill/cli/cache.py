"""``hf-distill cache``: a teacher's outputs for the training data, computed once."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_distill.cli.arguments import config_option, task_option, task_sections, use_cpu_option
from hf_distill.cli.outline import outline
from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.cli.train_arguments import TrainingFileArguments
from hf_distill.tasks.options import SCORING_OPTIONS, TaskArguments, names, option

if TYPE_CHECKING:
    from hf_distill.tasks.base import Task

EXAMPLES = """\
examples:
  once
    hf-distill cache --teacher_model teacher \\
        --train_file train.json --output_dir teacher_outputs

  then as often as you like, without the teacher
    hf-distill train --task question-answering --student_model SMALL_MODEL \\
        --teacher_outputs teacher_outputs --train_file train.json --output_dir distilled

  a language model: the 64 largest logits of each token
    hf-distill cache --task text-generation --teacher_model teacher --top_k 64 …

  on several GPUs
    accelerate launch --num_processes 4 -m hf_distill cache …

  log-probabilities from vLLM: of exactly these token ids, with prompt_logprobs=K
    hf-distill cache --task text-generation --teacher_model teacher --write_prompts ids.jsonl …
    hf-distill cache --task text-generation --teacher_model teacher \\
        --teacher_log_probs prompt_logprobs.jsonl …

  continue after an interruption: the same command again
"""


@dataclass
class CacheArguments:
    """The teacher, and how its outputs are stored."""

    teacher_model: list[str] = option(
        MISSING,
        help="The teacher, fine-tuned for the task: a folder or a Hub id. Of several, the "
        "predictions are averaged.",
    )
    output_dir: str = option(MISSING, help="Where the outputs go: a folder for them alone.")
    task: str | None = task_option()
    teacher_log_probs: str | None = option(
        help="Log-probabilities of the data's rows that another program has computed with the "
        "teacher, a causal language model, instead of running it: JSON lines with vLLM's "
        "prompt_logprobs, or JSON lines or Parquet with target_token_ids and target_logprobs. Of "
        "the teacher only configuration and tokenizer are read."
    )
    write_prompts: str | None = option(
        help="Only write the token ids of the data's rows, as the teacher reads them, to this "
        "file: JSON lines with prompt_token_ids, for the program that computes log-probabilities. "
        "A file that holds anything else is not replaced."
    )
    tokenizer: str | None = option(
        help="The tokenizer of the student, where it is not the teacher's or was trimmed: the "
        "student's folder or Hub id. By default the teacher's."
    )
    dtype: str = option(
        "float16",
        help="How the numbers are stored: float16 (a relative error of up to 1/2,048), bfloat16 "
        "(1/256, of any size) or float32 (as they were computed).",
        choices=["float16", "bfloat16", "float32"],
    )
    top_k: int | None = option(
        help="For large vocabularies: store only so many of the largest logits of a token, and "
        "what all the others add up to. By default all."
    )
    batch_size: int = option(32, help="Inputs at a time, of about the same length.")
    mixed_precision: str = option(
        "no",
        help="Compute in bf16 or fp16 (autocast), as a teacher does in a training with --bf16 or "
        "--fp16.",
        choices=["no", "bf16", "fp16"],
    )
    use_cpu: bool = use_cpu_option()
    config: str | None = config_option()


# Those of a training, without importing PyTorch.
TeacherArguments = outline(
    "hf_distill.training_args:DistillationTrainingArguments",
    only=("teacher_dtype", "teacher_weights", "teacher_combination"),
)


# Options that log-probabilities of another program leave no use for.
_OF_RUNNING = (
    "top_k",
    "batch_size",
    "mixed_precision",
    *names(TeacherArguments),
)


def build_parser() -> CommandParser:
    return CommandParser(
        [CacheArguments, TeacherArguments, TrainingFileArguments, TaskArguments],
        prog="hf-distill cache",
        usage="hf-distill cache --teacher_model MODEL --train_file FILE --output_dir FOLDER "
        "[options]",
        description="Run a teacher over the training data once, and keep its outputs for any "
        "number of\ntrainings: `hf-distill train --teacher_outputs FOLDER` with the same data "
        "options.",
        sections=[
            Section("teacher and outputs", names(CacheArguments, TeacherArguments)),
            Section("data", ["train_file", *names(TrainingFileArguments)]),
            *task_sections(),
        ],
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Cache a teacher's outputs."""
    parser = build_parser()
    arguments, averaging, data, options = parser.parse(argv)
    if (data.train_file is None) == (data.dataset_name is None):
        parser.error("name the data: either --train_file or --dataset_name.")
    data.check_use({"train_split": data.training})

    from accelerate import PartialState

    from hf_distill.cli.loading import (
        check_model_source,
        check_paths,
        choose_task,
        load_examples,
        load_meta_model,
        load_teacher_reader,
        load_tokenizer,
        naming,
        show_data,
    )
    from hf_distill.loading import load_teacher
    from hf_distill.teachers.caching import (
        cache_teacher_outputs,
        check_prompts_file,
        import_log_probs,
        write_token_ids,
    )

    source, *further = (
        check_model_source("teacher_model", name) for name in arguments.teacher_model
    )
    check_paths({"train_file": data.train_file})
    task = choose_task(arguments.task, options, {"teacher_model": source})
    logged = arguments.teacher_log_probs or arguments.write_prompts
    if logged is not None:
        _check_logged(arguments, parser.given(argv), task)
    check_paths({"teacher_log_probs": arguments.teacher_log_probs})
    if arguments.write_prompts is not None:
        try:
            check_prompts_file(arguments.write_prompts)
        except ValueError as error:
            raise ValueError(f"--write_prompts: {error}") from error
    place = data.training._replace(max_samples=data.max_train_samples)
    examples, labelled = load_examples(task, place, or_unlabelled=True)
    if not labelled and task.reads_targets:
        raise ValueError(
            "--train_file: outputs are stored for targets, and the data has none; `hf-distill "
            "train --distillation_loss_weight 1 --teacher_model …` lets the teacher write them."
        )
    if arguments.tokenizer is None:
        tokenizer = load_tokenizer("teacher_model", source)
    else:
        own = check_model_source("tokenizer", arguments.tokenizer)
        tokenizer = load_tokenizer("tokenizer", own)
    reader = load_teacher_reader([source, *further], task, tokenizer)
    state = PartialState(cpu=arguments.use_cpu)
    if logged is not None:
        teacher: Any = load_meta_model("teacher_model", source, task)
    else:
        teacher = load_teacher(
            source,
            task.head.auto_model,
            task.name,
            dtype=averaging.teacher_dtype,
            device=state.device,
        )
    with naming(place):
        encoded = task.features(
            examples,
            tokenizer,
            teacher if reader is None else _as_student(arguments.tokenizer, task, teacher),
            training=True,
            labelled=labelled,
            num_proc=data.preprocessing_num_workers,
            teacher=reader,
        )
    show_data(task, {"train": (examples, encoded, labelled)}, teacher)
    if arguments.write_prompts is not None:
        if state.is_main_process:
            write_token_ids(arguments.write_prompts, encoded.features)
            sys.stdout.write(
                f"The token ids of {len(encoded.features):,} rows are in "
                f"{arguments.write_prompts}; pass their log-probabilities as --teacher_log_probs.\n"
            )
        return
    common: dict[str, Any] = {
        "processing_class": tokenizer,
        "teacher_processing_class": None if reader is None else reader.tokenizer,
        "data_collator": task.data_collator(tokenizer, teacher),
        "output_dir": arguments.output_dir,
        "dtype": arguments.dtype,
        "preprocessing": preprocessing_of(task),
    }
    if arguments.teacher_log_probs is not None:
        stored = import_log_probs(
            arguments.teacher_log_probs, teacher.config, encoded.features, **common
        )
    else:
        stored = cache_teacher_outputs(
            [teacher, *further],
            encoded.features,
            task=task.name,
            top_k=arguments.top_k,
            batch_size=arguments.batch_size,
            mixed_precision=arguments.mixed_precision,
            use_cpu=arguments.use_cpu,
            **common,
            **vars(averaging),
        )
    if state.is_main_process:
        sys.stdout.write(
            f"The teacher's outputs for {len(stored):,} rows are in {arguments.output_dir}; train "
            "with --teacher_outputs and the same data options.\n"
        )


def _as_student(source: str, task: Task, teacher: Any) -> Any:
    """Return a model that reads as much as the student, with the teacher's labels."""
    from hf_distill.cli.loading import load_config, load_meta_model

    if load_config(source) is None:
        return teacher
    student = load_meta_model("tokenizer", source, task)
    for name in ("id2label", "label2id", "problem_type"):
        setattr(student.config, name, getattr(teacher.config, name))
    return student


def _check_logged(arguments: CacheArguments, given: Collection[str], task: Task) -> None:
    """Check the options for log-probabilities that another program computes.

    Args:
        arguments: the options.
        given: those that were not left to their defaults.
        task: the task.
    """
    name = "write_prompts" if arguments.write_prompts else "teacher_log_probs"
    if task.name != "text-generation":
        raise ValueError(
            f"--{name}: log-probabilities of texts are those of causal language models, and the "
            f"task is {task.name}; choose --task text-generation."
        )
    unused = [*_OF_RUNNING]
    reason = "no teacher is run, and one model's log-probabilities are stored as they are"
    if name == "write_prompts":
        unused += ["dtype", "teacher_log_probs"]
        reason = "the token ids for one model are written, and nothing is run or stored"
    refused = [one for one in unused if one in given]
    if len(arguments.teacher_model) > 1 or refused:
        option = [*refused, "teacher_model A B"][0]
        raise ValueError(f"--{option} cannot be used with --{name}: {reason}. Leave it out.")


def preprocessing_of(task: Task) -> dict[str, Any]:
    """Return the options that the inputs of a task are prepared with."""
    return {k: v for k, v in asdict(task.options).items() if k not in SCORING_OPTIONS}
