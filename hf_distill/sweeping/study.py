"""The trials of a sweep in a file, which a sudden end leaves whole; what to try next."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from hf_distill.sweeping.space import SearchSpace, Value

_NAME = "sweep"
# A sampler that has drawn only what was tried before by then will not find the rest soon.
_MOST_DRAWS = 100


def open_study(path: Path, *, lower_is_better: bool) -> Study:
    """Open or begin a study in a journal file: JSON lines that are only ever added to.

    Nobody else may have it open (``hf_distill.files.in_use``).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.exists():  # a process may have been killed while it wrote: a torn line, a lock
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    return optuna.create_study(
        study_name=_NAME,
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="minimize" if lower_is_better else "maximize",
        load_if_exists=True,
    )


def interrupted_trial(study: Study) -> FrozenTrial | None:
    """Return the trial that was begun and not ended, if there is one."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next(iter(running), None)


def begin_trial(study: Study, space: SearchSpace, *, sampler: str, seed: int) -> FrozenTrial | None:
    """Write down a new trial, with all its parameters in one line of the journal.

    What is drawn depends on the seed, the number of the trial and the values of those before it
    alone, so a sweep that was interrupted continues as if it had not been.

    Args:
        study: from ``open_study``.
        space: what to search.
        sampler: ``grid`` (all combinations in their order), ``random`` or ``tpe`` (the
            tree-structured Parzen estimator of Bergstra et al. 2011). None of them tries a
            combination twice.
        seed: of the sampler.

    Returns:
        The trial; ``None`` if everything was tried.

    Raises:
        ValueError: a grid over a range without a step.
    """
    parameters = _draw(study, space, sampler, seed)
    if parameters is None:
        return None
    study.add_trial(
        create_trial(state=TrialState.RUNNING, params=parameters, distributions=dict(space.options))
    )
    return study.get_trials(deepcopy=False)[-1]


def _draw(study: Study, space: SearchSpace, sampler: str, seed: int) -> dict[str, Value] | None:
    trials = study.get_trials(deepcopy=False)
    tried = [trial.params for trial in trials]
    if sampler != "grid" and (space.size is None or len(tried) < space.size):
        # Drawn from a copy: `ask` of the study itself would write a line for each parameter.
        # Seeded for each trial: a sampler's own state would not survive an interruption.
        samplers: dict[str, Any] = {"random": RandomSampler, "tpe": TPESampler}
        copy = optuna.create_study(
            sampler=samplers[sampler](seed=(seed * 1_000_003 + len(tried)) % 2**32),
            direction=study.direction,
        )
        copy.add_trials(trials)
        for _ in itertools.repeat(None, _MOST_DRAWS):
            drawn = space.clean(copy.ask(dict(space.options)).params)
            if drawn not in tried:
                return drawn
        if space.size is None:
            return None
    return next((one for one in space.combinations() if one not in tried), None)
