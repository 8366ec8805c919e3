"""End a training once its metric no longer improves."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


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
        values = [log[name] for log in state.log_history if name in log]
        if not values:
            return False
        best = max(values) if args.greater_is_better else min(values)
        return len(values) - 1 - values.index(best) >= self._patience
