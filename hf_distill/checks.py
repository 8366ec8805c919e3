"""Checks of launch, data and teacher outputs: what would go wrong is said before it does."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_utils import has_length

from hf_distill.heads.base import unusable_rows
from hf_distill.step import AlignedLogits

logger = logging.getLogger(__name__)

_NEVER = torch.iinfo(torch.int64).max


def named_datasets(train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
    """Return the data sets of a trainer by the names that messages give them."""
    datasets = {"train_dataset": train_dataset}
    if isinstance(eval_dataset, dict):
        datasets.update({f"eval_dataset[{key!r}]": value for key, value in eval_dataset.items()})
    else:
        datasets["eval_dataset"] = eval_dataset
    return datasets


def len_of(dataset: Any) -> int | None:
    """Return the number of rows, ``None`` where that is not known."""
    return len(dataset) if has_length(dataset) else None


def check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
    """Refuse data sets without rows.

    Raises:
        ValueError: names the data set.
    """
    for name, dataset in named_datasets(train_dataset, eval_dataset).items():
        if dataset is not None and len_of(dataset) == 0:
            raise ValueError(f"{name} is empty: it has no rows.")


def check_trainable(student: Any) -> None:
    """Refuse a student whose weights are all frozen.

    Raises:
        ValueError: there is nothing to train.
    """
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            "All weights of the student (model) are frozen, requires_grad=False, so nothing would "
            "be learned. Set requires_grad=True for those to train; an adapter of PEFT is loaded "
            "with PeftModel.from_pretrained(…, is_trainable=True)."
        )


def check_steps(args: TrainingArguments, train_dataset: Any = None) -> None:
    """Refuse a training without a single step.

    Raises:
        ValueError: names the argument.
    """
    if args.max_steps == 0:
        raise ValueError(
            "max_steps=0 trains nothing: set it to 1 or more, or to -1 to train by "
            "num_train_epochs."
        )
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"num_train_epochs={args.num_train_epochs} trains nothing: set it above 0, or name "
            "max_steps."
        )
    # All processes share what a loader draws, unless that is divided among them.
    divided = getattr(args.accelerator_config, "split_batches", False)
    batch = args.train_batch_size * (1 if divided else args.world_size)
    rows = len_of(train_dataset)
    if args.dataloader_drop_last and rows is not None and rows < batch:
        raise ValueError(
            f"dataloader_drop_last=True leaves out all of the training data: it has {rows} rows, "
            f"and a batch of all processes {batch}. Choose a smaller "
            "per_device_train_batch_size, or leave dataloader_drop_last out."
        )


def warn_of_half_precision(student: Any) -> None:
    """Warn if weights that are trained have 16 bits, as checkpoints in that format are loaded."""
    counts = Counter({torch.float16: 0, torch.bfloat16: 0})
    for parameter in student.parameters():
        if parameter.requires_grad and parameter.dtype in counts:
            counts[parameter.dtype] += parameter.numel()
    dtype, count = counts.most_common(1)[0]
    if count:
        name = str(dtype).removeprefix("torch.")
        logger.warning(
            f"The student's weights are {name} and are trained in it: updates smaller than its "
            "steps are lost, and on a CPU it is slow. from_pretrained keeps the format of the "
            'checkpoint: load the student with from_pretrained(…, dtype="float32"), and for mixed '
            "precision set bf16=True."
        )


def check_late_inputs(names: Iterable[str], dataset: Any, batch: Mapping[str, Any]) -> None:
    """Refuse a teacher that is first needed in the middle of a training and lacks inputs there.

    Raises:
        ValueError: names what was removed, or is not known to be absent from the data.
    """
    columns = getattr(dataset, "column_names", None)
    row = dataset[0] if columns is None and len_of(dataset) else None
    if isinstance(row, Mapping):
        columns = list(row)
    lost = sorted(set(names) & set(names if columns is None else columns) - set(batch))
    if lost:
        raise ValueError(
            "The weight of the distillation loss was 0 when this training began, so the batches "
            f"lack what only the teacher reads ({', '.join(lost)}). Begin with "
            "distillation_loss_weight above 0, however small, and change it then."
        )


def warn_of_bypassed_loss(trainer_class: type) -> None:
    """Warn that a subclass computes its loss without the teacher."""
    name = f"{trainer_class.__name__}.compute_loss"
    logger.warning(
        f"{name} does not call that of DistillationTrainer, so the student learns nothing from the "
        f"teacher. Either call super().compute_loss(...) in {name} and change what it returns, or "
        "leave compute_loss as it is and pass your label loss, such as one with class weights, as "
        "compute_loss_func=f with f(outputs, labels, num_items_in_batch=None): it is mixed with "
        "the distillation loss."
    )


def sample_batches(
    dataset: Any, most: int, *, batch_size: int, collator: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    """Batches of at most ``most`` rows from all over a data set; none if it has no length.

    Args:
        dataset: as ``Trainer`` takes it for evaluation; the first of several.
        most: rows in all.
        batch_size: rows at a time.
        collator: makes a batch of rows.
    """
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    length = len_of(dataset) or 0
    size = min(length, most)
    rows = [dataset[i * length // size] for i in range(size)]
    for start in range(0, size, batch_size):
        yield collator(rows[start : start + batch_size])


_TEACHER = (
    "The teacher's outputs contain NaN or +inf in a batch of {where}. Check the teacher's weights, "
    "and that its number format does not overflow (try teacher_dtype='float32', or bf16 instead "
    "of fp16)."
)
_LOSS = (
    "The loss of a batch of {where} is NaN or infinite, as all weights would be after it. Take a "
    "smaller learning_rate, and check that the student's weights and the labels are finite."
)


class NanGuard:
    """Refuse a teacher's outputs that are NaN or +inf, and losses that are not finite.

    (-inf is a legitimate "impossible" among logits.)

    Args:
        at_once: look at the answer in every step, which costs nothing on a CPU. Elsewhere it is
            fetched when something is logged or saved anyway and every ``steps_between`` steps, so
            that few steps wait for the device.
    """

    steps_between = 100

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self._first_bad: dict[str, Tensor] = {}

    def check_logits(self, pair: AlignedLogits, step: int) -> None:
        """Look at the teacher's logits of one batch, where they count.

        Raises:
            ValueError: names the batch and the rows.
        """
        logits = pair.teacher
        if pair.class_mask is not None:
            logits = logits.masked_fill(~pair.class_mask, 0.0)
        bad = unusable_rows(logits)
        if pair.row_mask is not None:
            bad = bad & pair.row_mask
        self.check(bad, step)

    def check_loss(self, loss: Tensor, step: int) -> None:
        """Look at the loss of one batch.

        Raises:
            ValueError: names the batch.
        """
        self._note(~loss.detach().isfinite(), step, _LOSS)

    def check(self, bad: Tensor, step: int) -> None:
        """Take note of the rows of a batch for which the teacher gave nothing usable.

        Raises:
            ValueError: names the batch and the rows.
        """
        self._note(bad, step, _TEACHER)

    def _note(self, bad: Tensor, step: int, message: str) -> None:
        if self._at_once:
            if bool(bad.any()):
                rows = bad.flatten(1).any(dim=1) if bad.dim() > 1 else bad
                of_rows = f", rows {rows.nonzero().flatten().tolist()}" if bad.dim() else ""
                self._raise(step, message, of_rows)
            return
        found = torch.where(bad.any(), step, _NEVER)
        earlier = self._first_bad.get(message)
        self._first_bad[message] = found if earlier is None else earlier.minimum(found)

    def raise_if_bad(self) -> None:
        """Raise for the first bad batch since the last call, if there was one.

        Raises:
            ValueError: names the batch.
        """
        noted, self._first_bad = self._first_bad, {}
        for message, found in noted.items():
            if int(found) != _NEVER:
                self._raise(int(found), message)

    @staticmethod
    def _raise(step: int, message: str, rows: str = "") -> None:
        where = f"training step {step}" if step else "an evaluation"
        raise ValueError(message.format(where=f"{where}{rows}"))
