"""Keep the best of a training, its start included, and end it when its metric stops improving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_distill.console import log_rank_0


class EarlyStopping(TrainerCallback):
    """Stop after so many evaluations without a new best value of ``metric_for_best_model``.

    It reads the trainer's log, which a checkpoint has, so that a resumed training stops where an
    uninterrupted one does.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= self._is_over(args, state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop again if the training was killed after it had stopped."""
        control.should_training_stop |= self._is_over(args, state)

    def _is_over(self, args: Any, state: Any) -> bool:
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        # By step: a training that is resumed is scored again where it begins.
        values = [*{log["step"]: log[name] for log in state.log_history if name in log}.values()]
        if not values:
            return False
        best = max(values) if args.greater_is_better else min(values)
        return len(values) - 1 - values.index(best) >= self._patience


class StartCounts(TrainerCallback):
    """Keep the student as it starts if no checkpoint scores higher.

    A student that was created from its teacher may know more than its training data teaches.
    Trainer compares the checkpoints, so the start becomes one. For a training with
    ``eval_on_start`` and ``load_best_model_at_end``.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step or state.best_metric is not None:
            return
        trainer = self._trainer
        trainer._determine_best_metric(metrics, None)
        # Trainer itself does so for steps above 0 alone; before saving, so a resumed run knows it.
        state.best_model_checkpoint = str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-0")
        trainer._save_checkpoint(trainer.model_wrapped, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the training has changed nothing."""
        if state.best_global_step == 0:
            log_rank_0(
                "No checkpoint scored higher than the student before its first step, so that is "
                "kept. Another --learning_rate, or more data, may do better."
            )
