"""Progress of the trainings of a command: one line per stage, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback

from hf_distill.console import log_rank_0
from hf_distill.files import write_json
from hf_distill.layers.mapping import as_lists
from hf_distill.reports.terminal import in_words

if TYPE_CHECKING:
    from hf_distill.trainer import DistillationTrainer


class WholeRun:
    """Estimates how long several trainings take together.

    Args:
        clock: seconds, from any time on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares: list[float] = []
        self._done = 0.0
        self._began_at = self._stage_began_at = 0.0

    def expect(self, shares: Sequence[float]) -> None:
        """Note what each of the trainings costs, in any unit."""
        self._shares, self._done, self._began_at = list(shares), 0.0, self._clock()

    def begin(self) -> None:
        self._stage_began_at = self._clock()

    def end(self) -> None:
        """Note that the training has ended."""
        self._done += sum(self._shares[:1])
        self._shares = self._shares[1:]

    def seconds_left(self, done: float, begun_with: float = 0.0) -> float | None:
        """Estimate what is left of all trainings; ``None`` if that is this one alone.

        Args:
            done: the share of this training that is done.
            begun_with: what of it was done before, in an earlier run.
        """
        if len(self._shares) < 2 or done <= begun_with:
            return None
        share, *others = self._shares
        now = self._clock()
        stage = (now - self._stage_began_at) / (done - begun_with)
        spent = self._done + share * (done - begun_with)
        return stage * (1 - done) + (now - self._began_at) / spent * sum(others)


_whole_run: ContextVar[WholeRun | None] = ContextVar("whole_run", default=None)


@contextmanager
def whole_run() -> Iterator[WholeRun]:
    """Estimate the time of all trainings inside; inside another one, of all of those."""
    outer = _whole_run.get()
    if outer is not None:
        yield outer
        return
    run = WholeRun()
    token = _whole_run.set(run)
    try:
        yield run
    finally:
        _whole_run.reset(token)


class StageProgress(ProgressCallback):
    """A bar for a training; without bars (``disable_tqdm``) a line for each of its logs.

    Args:
        title: what is trained.
        quality: what the metrics of evaluations are called, by name.
    """

    def __init__(self, title: str, quality: Mapping[str, str]) -> None:
        super().__init__()
        self.title = title
        self._quality = quality
        self._loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun_with = self.current_step = state.global_step
        if (whole := _whole_run.get()) is not None:
            whole.begin()
        if state.is_world_process_zero and not args.disable_tqdm:
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is None:
            return
        whole, steps = _whole_run.get(), max(state.max_steps, 1)
        left = None
        if whole is not None:
            left = whole.seconds_left(state.global_step / steps, self._begun_with / steps)
        notes = [self._loss, "" if left is None else f"all: {duration(left)} left"]
        self.training_bar.set_postfix_str(", ".join(filter(None, notes)), refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not args.disable_tqdm:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.set_description("Scoring", refresh=False)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss on the bar, and the figures of an evaluation above it."""
        logs = logs or {}
        scores = {
            name: value
            for name, value in logs.items()
            if name.startswith("eval_") and isinstance(value, int | float)
        }
        if not state.is_world_process_zero or not (scores or "loss" in logs):
            return
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.4g}"
        shown = in_words(scores, self._quality).items()
        line = ", ".join(f"{name} {value:.4g}" for name, value in shown) or self._loss
        place = f"{self.title}: step {state.global_step} of {state.max_steps}: {line}"
        if args.disable_tqdm:
            sys.stderr.write(f"{place}\n")
        elif scores and self.training_bar is not None:
            self.training_bar.write(place, file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (whole := _whole_run.get()) is not None:
            whole.end()
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def close(self) -> None:
        """End the lines of bars that an error has interrupted."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()


class ChosenLayers(TrainerCallback):
    """When training begins, show which layers ``layer_mapping="auto"`` chose, and why.

    The layers' similarities are a table, and a heat map in a folder; only then are they known.
    """

    def __init__(self, trainer: DistillationTrainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        layers = self._trainer.distiller.layers
        if layers is None or not layers.similarities or not state.is_world_process_zero:
            return
        from hf_distill.reports.layer_similarity import plot_layer_similarity, similarity_table

        for stack, similarity in layers.similarities.items():
            of = f" of the {stack}" if stack else ""
            log_rank_0(f"Similarity of the layers{of} (linear CKA); * learn from each other:")
            sys.stderr.write(similarity_table(similarity, layers.pairs[stack]) + "\n")
            name = f"{stack}_layer_similarity.png" if stack else "layer_similarity.png"
            file = plot_layer_similarity(similarity, layers.pairs[stack], self._folder / name)
            log_rank_0(f"The same as a picture: {file}")
            content = {"similarity": similarity.tolist(), "pairs": as_lists(layers.pairs[stack])}
            write_json(file.with_suffix(".json"), content)


def duration(seconds: float) -> str:
    """Return a time in words, such as `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
