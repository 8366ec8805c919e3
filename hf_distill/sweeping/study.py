"""The trials of a sweep in a file, which a sudden end leaves whole; what to try next."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_distill import files
from hf_distill.sweeping.space import SearchSpace, Value

SAMPLERS = ("grid", "tpe", "random")
_NAME = "sweep"
# A sampler that has drawn only what was tried before by then will not find the rest soon.
_MOST_DRAWS = 100


@dataclass(frozen=True)
class Trial:
    """One combination of options.

    Attributes:
        number: from 0, in the order in which they were begun.
        parameters: the options that the sweep sets.
        state: ``running`` (or interrupted), ``complete`` or ``failed``.
        value: of the metric, if it is complete.
    """

    number: int
    parameters: dict[str, Value]
    state: str
    value: float | None = None


class SweepStudy:
    """An Optuna study in a journal file: JSON lines that are only ever added to.

    A trial is written down with all its parameters before it is begun, so that one that was
    interrupted is known. What is drawn depends on the seed, the number of the trial and the values
    of those before it alone: a sweep that was interrupted goes on as if it had not been.

    Args:
        path: the file; made if need be.
        space: what to search.
        sampler: ``grid`` (all combinations in their order), ``random`` or ``tpe`` (the
            tree-structured Parzen estimator of Bergstra et al. 2011). None of them tries a
            combination twice.
        seed: of the sampler.
        lower_is_better: the metric is an error.

    Raises:
        ValueError: a grid over a range without a step; an unknown sampler.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        space: SearchSpace,
        *,
        sampler: str,
        seed: int,
        lower_is_better: bool,
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if sampler not in SAMPLERS:
            raise ValueError(
                f"sampler must be one of {', '.join(SAMPLERS)}, but it is {sampler!r}."
            )
        endless = space.endless()
        if sampler == "grid" and endless:
            raise ValueError(
                f"a grid needs values that can be listed, but {', '.join(endless)} is a range "
                "without a step; give it a step, list its values, or choose the sampler tpe or "
                "random."
            )
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._direction: Literal["minimize", "maximize"] = (
            "minimize" if lower_is_better else "maximize"
        )
        self._distributions = space.distributions()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = Path(path)
        _drop_torn_line(path)
        # Left by a process that was killed while it wrote; `in_use` keeps others out.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        self._study = optuna.create_study(
            study_name=_NAME,
            storage=JournalStorage(JournalFileBackend(str(path))),
            direction=self._direction,
            load_if_exists=True,
        )

    def trials(self) -> list[Trial]:
        """All trials, in their order."""
        states = {"COMPLETE": "complete", "FAIL": "failed"}
        return [
            Trial(
                trial.number,
                self._space.exactly(trial.params),
                states.get(trial.state.name, "running"),
                trial.value if trial.state.name == "COMPLETE" else None,
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def best(self) -> Trial | None:
        """The trial with the best value, the first of several; ``None`` before there is one."""
        best: Trial | None = None
        sign = 1 if self._direction == "maximize" else -1
        for trial in self.trials():
            if trial.value is not None and (
                best is None or sign * trial.value > sign * (best.value or 0.0)
            ):
                best = trial
        return best

    def is_done(self, n_trials: int) -> bool:
        """Whether so many trials have ended, and none is left unfinished."""
        return len(self.trials()) >= n_trials and self.interrupted() is None

    def interrupted(self) -> Trial | None:
        """The trial that was begun and not ended, if there is one."""
        return next((trial for trial in self.trials() if trial.state == "running"), None)

    def begin(self) -> Trial | None:
        """A new trial; ``None`` if all was tried."""
        from optuna.trial import TrialState, create_trial

        parameters = self._next([trial.parameters for trial in self.trials()])
        if parameters is None:
            return None
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=parameters, distributions=self._distributions
            )
        )
        return self.trials()[-1]

    def complete(self, trial: Trial, value: float) -> None:
        """Write down what a trial came to."""
        self._study.tell(trial.number, value)

    def fail(self, trial: Trial) -> None:
        """Write down that a trial came to nothing."""
        from optuna.trial import TrialState

        self._study.tell(trial.number, state=TrialState.FAIL)

    def _next(self, tried: list[dict[str, Value]]) -> dict[str, Value] | None:
        size = self._space.size
        if size is not None and len(tried) >= size:
            return None
        if self._sampler != "grid":
            drawn = self._draws(len(tried))
            new = next((one for one in drawn if one not in tried), None)
            if new is not None:
                return new
        if size is None:
            return None
        return next((one for one in self._space.combinations() if one not in tried), None)

    def _draws(self, number: int) -> Iterator[dict[str, Value]]:
        """What the sampler suggests for a trial, again and again."""
        import optuna

        # Seeded for each trial: a sampler's own state would not survive an interruption.
        seed = (self._seed * 1_000_003 + number) % 2**32
        samplers: dict[str, Any] = {
            "random": optuna.samplers.RandomSampler,
            "tpe": optuna.samplers.TPESampler,
        }
        copy = optuna.create_study(
            sampler=samplers[self._sampler](seed=seed), direction=self._direction
        )
        copy.add_trials(self._study.get_trials(deepcopy=False))
        for _ in itertools.repeat(None, _MOST_DRAWS):
            yield self._space.exactly(copy.ask(self._distributions).params)


def check_optuna() -> None:
    """Check that Optuna can be imported.

    Raises:
        RuntimeError: says how to install it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise RuntimeError("a sweep needs Optuna: pip install hf-distill[sweep]")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder; a process that is killed lets go of it.

    Raises:
        ValueError: another sweep is at work there.
    """
    busy = (
        f"--output_dir {folder}: another sweep is at work in this folder; wait for it, or choose "
        "another folder."
    )
    with files.in_use(folder / ".sweep.lock", busy):
        yield


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
