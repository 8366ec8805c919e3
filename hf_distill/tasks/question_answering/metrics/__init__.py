"""The SQuAD metrics as `evaluate` modules that need no network.

`evaluate.load("squad")` fetches a script from the Hub; `load_metric("squad")` does not. The same
modules can be loaded by path: `evaluate.load(".../question_answering/metrics/squad_v2")`.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import evaluate

from hf_distill.tasks.question_answering.metrics.squad.squad import Squad
from hf_distill.tasks.question_answering.metrics.squad_v2.squad_v2 import SquadV2

METRICS: dict[str, type[evaluate.Metric]] = {"squad": Squad, "squad_v2": SquadV2}


def load_metric(name: str) -> evaluate.Metric:
    """Make a question-answering metric.

    Args:
        name: `"squad"` (v1.1: every question has an answer) or `"squad_v2"`.

    Returns:
        A fresh metric that keeps what it is given in memory.

    Raises:
        ValueError: No metric has that name.

    Example:
        >>> metric = load_metric("squad")
        >>> metric.compute(
        ...     predictions=[{"id": "1", "prediction_text": "the Alps"}],
        ...     references=[{"id": "1", "answers": {"text": ["Alps"], "answer_start": [3]}}],
        ... )
        {'exact_match': 100.0, 'f1': 100.0}
    """
    if name not in METRICS:
        raise ValueError(f"name={name!r} is no metric; choose one of {', '.join(METRICS)}")
    # evaluate makes a folder for each metric, also for one that writes nothing; not in the cache of
    # the Hub, which containers may not be able to write to.
    with TemporaryDirectory() as unused:
        return METRICS[name](keep_in_memory=True, cache_dir=unused)


__all__ = ["METRICS", "Squad", "SquadV2", "load_metric"]
