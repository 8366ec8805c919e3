"""Metrics and predictions of a fine-tuned model on labelled data."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_distill.compatibility.tokenizers import check_padding, check_vocabulary
from hf_distill.console import log_rank_0
from hf_distill.launch import check_launch
from hf_distill.tasks.base import Scorer, Task
from hf_distill.tasks.bootstrap import TIMINGS
from hf_distill.tasks.fidelity import OutputRecorder

_cut_rows_said: WeakKeyDictionary[Dataset, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Scores:
    """Scores of a model on some data.

    Attributes:
        metrics: the task's metrics by name, and ``loss``.
        scorer: has the predictions.
        is_main_process: whether this process is the one that prints and writes.
    """

    metrics: dict[str, float]
    scorer: Scorer
    is_main_process: bool


def score_model(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    *,
    batch_size: int = 16,
    use_cpu: bool = False,
    num_proc: int | None = None,
    recorder: OutputRecorder | None = None,
) -> Scores:
    """Score a fine-tuned model on labelled data, on as many processes as were launched.

    ``batch_size`` counts rows of the features (windows, texts …); ``recorder`` looks at the logits.

    Raises:
        ValueError: an option does not fit the model, or the model gives NaN.
        RuntimeError: the processes were launched in a way that cannot share the work.
    """
    features, cut = task.features(examples, tokenizer, model, training=False, num_proc=num_proc)
    check_vocabulary(tokenizer, model, "model")
    check_padding(tokenizer.pad_token_id, model, "model")
    said = _cut_rows_said.get(examples)
    _cut_rows_said[examples] = cut
    if cut and cut != said:
        log_rank_0(
            f"{cut} of {len(examples)} rows are longer than allowed and cut off ({task.limit})."
        )
    scorer = task.scorer(examples, features, tokenizer, model)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            use_cpu=use_cpu,
            dataloader_pin_memory=torch.accelerator.is_available() and not use_cpu,
            report_to="none",
        )
        check_launch(args)
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=task.data_collator(tokenizer, model),
            processing_class=tokenizer,
            compute_metrics=scorer,
            preprocess_logits_for_metrics=scorer.preprocess_logits,
        )
        # Else Trainer multiplies the loss by the number of processes, as for training.
        trainer.model_accepts_loss_kwargs = False
        with nullcontext() if recorder is None else recorder.recording(model):
            output = trainer.predict(features, metric_key_prefix="eval")
        written = scorer.finish(trainer)
        trainer.accelerator.wait_for_everyone()
    named = {name.removeprefix("eval_"): value for name, value in (output.metrics or {}).items()}
    named |= written
    return Scores(
        metrics={name: float(value) for name, value in named.items() if not name.endswith(TIMINGS)},
        scorer=scorer,
        is_main_process=trainer.is_world_process_zero(),
    )
