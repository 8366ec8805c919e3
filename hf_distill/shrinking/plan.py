"""The parts of a plan: what was asked for and measured, the decisions, the predicted time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_distill.reports.report import Decision
from hf_distill.shrinking.shapes import Shape, Timed
from hf_distill.students.sizes import check_dropout, is_between

_BUDGET = re.compile(
    r"(?:(?P<h>[\d.]+)\s*h)?\s*(?:(?P<m>[\d.]+)\s*m(?:in)?)?\s*(?:(?P<s>[\d.]+)\s*s)?"
)


@dataclass(frozen=True)
class Asked:
    """What the user set by hand; ``None`` is left to the plan.

    Attributes:
        budget: seconds of the whole plan.
        num_train_epochs: passes over the training data, of both stages together.
        learning_rate: of both stages.
        temperature: of the prediction stage.
        distillation_loss_weight: 1 needs no labels.
        dropout: of the student while it learns.
        hidden_states_share: of all steps, those on hidden states, from 0 to below 1.
        batch_size: rows of a step.
        cache: store the teacher's outputs.
    """

    budget: float | None = None
    num_train_epochs: float | None = None
    learning_rate: float | None = None
    temperature: float | None = None
    distillation_loss_weight: float | None = None
    dropout: float | None = None
    hidden_states_share: float | None = None
    batch_size: int | None = None
    cache: bool | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured, in seconds.

    Attributes:
        hidden_states_step: a training step on hidden states, teacher included; 0 where there are
            none.
        prediction_step: one on the prediction layer, teacher included.
        teacher_batch: the teacher's part of a step.
        creation: making the student.
        filled: share of a batch that is not padding where rows of all lengths come in turn, as when
            they are scored; batches of a training, and stored outputs, are of about one length.
    """

    hidden_states_step: float
    prediction_step: float
    teacher_batch: float
    creation: float
    filled: float = 1.0

    @property
    def own_step(self) -> float:
        """Seconds of a step without its teacher."""
        return self.prediction_step - self.teacher_batch


@dataclass(frozen=True)
class Data:
    """The data, in rows of features.

    Attributes:
        train: of the training data.
        validation: of the validation data; 0 without any.
        labelled: whether the training data has labels.
        metric: the task's first metric, if there is validation data.
        lower_is_better: whether it is an error.
        loss: of the prediction layer, as the model's outputs allow it.
    """

    train: int
    validation: int = 0
    labelled: bool = True
    metric: str | None = None
    lower_is_better: bool = False
    loss: str = "kl_div"


@dataclass(frozen=True)
class Further:
    """What is made in addition to the student.

    Attributes:
        baseline: the same student, trained on labels alone.
        exports: for serving: 0, 1 or 2.
        can_search: what a search needs is installed.
    """

    baseline: bool = False
    exports: int = 0
    can_search: bool = True


@dataclass(frozen=True)
class Plan:
    """All decisions, the table they rest on, and the time that each step will take.

    Attributes:
        task: the task.
        teacher: the teacher's shape.
        shape: the student's.
        speedup: the predicted one.
        decisions: what was decided and why, by the name of the option.
        table: the shapes that were timed, the slowest first.
        seconds: predicted, by step.
        busy: the load of the machine, if other work made the timings longer.
        teacher_parameters: of the teacher.
    """

    task: str
    teacher: Shape
    shape: Shape
    speedup: float
    decisions: dict[str, Decision]
    table: list[Timed] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    busy: str | None = None
    teacher_parameters: int | None = None

    def __getitem__(self, name: str) -> Any:
        """Return the value of a decision."""
        return self.decisions[name].value

    def get(self, name: str) -> Any:
        """Return the value of a decision; ``None`` if it was not needed."""
        return self[name] if name in self.decisions else None

    def with_found(self, sweep: Mapping[str, Any]) -> Plan:
        """Return the plan with the settings that its search found.

        The defaults stay where the best of the search is not better by more than noise.

        Args:
            sweep: the content of ``sweep.json``.
        """
        trials = {one["number"]: one for one in sweep["trials"]}
        if sweep["best"] is None:
            reason = f"the default: every training of the search failed ({trials[0]['failure']})"
            kept = {n: replace(self.decisions[n], reason=reason) for n in trials[0]["parameters"]}
            return replace(self, decisions={**self.decisions, **kept})
        best = trials[sweep["best"]]
        score = f"{sweep['metric']} {best['value']:.4g}, the best of {len(trials)} in the search"
        planned = {name: self[name] for name in best["parameters"]}
        equals = [trials[number]["parameters"] for number in sweep["within_noise_of_best"]]
        if planned in equals:
            score = "the default: in the search none was better by more than noise"
            best = {"parameters": planned}
        found = {n: Decision(n, value, score) for n, value in best["parameters"].items()}
        return replace(self, decisions={**self.decisions, **found})

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON content."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Read what ``to_json`` returned.

        Raises:
            ValueError: it is not a plan.
        """
        try:
            values = dict(content)
            for name in ("teacher", "shape"):
                values[name] = Shape(**values[name])
            values["decisions"] = {n: Decision(**d) for n, d in values["decisions"].items()}
            rows = [{**row, "shape": Shape(**row["shape"])} for row in values["table"]]
            values["table"] = [Timed(**row) for row in rows]
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not a plan of hf-distill shrink ({error})") from error


def read_budget(text: str) -> float:
    """Return the seconds of a budget such as ``2h``, ``90m`` or ``1h 30m``.

    Raises:
        ValueError: it is not one.
    """
    found = _BUDGET.fullmatch(text.strip())
    named = {} if found is None else found.groupdict()
    try:
        parts = {unit: float(number) for unit, number in named.items() if number}
    except ValueError:
        parts = {}
    seconds = sum(parts.get(unit, 0) * size for unit, size in (("h", 3600), ("m", 60), ("s", 1)))
    if not seconds > 0:
        raise ValueError(f"budget={text!r} is not a time such as 2h, 90m or 1h 30m.")
    return seconds


def check_asked(asked: Asked) -> None:
    """Check the values that are set by hand.

    Raises:
        ValueError: one is out of its range, or two contradict each other.
    """
    if asked.budget is not None and asked.num_train_epochs is not None:
        raise ValueError(
            "budget and num_train_epochs both say how long to train: leave one of them out."
        )
    for name in ("num_train_epochs", "learning_rate", "temperature"):
        value = getattr(asked, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value} must be a finite number above 0.")
    weight, share = asked.distillation_loss_weight, asked.hidden_states_share
    if weight is not None and not 0 < weight <= 1:
        raise ValueError(
            f"distillation_loss_weight={weight} must be above 0 (else use baseline) and at most 1."
        )
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"hidden_states_share={share} must be from 0 to below 1.")
    check_dropout(asked.dropout)
    if asked.batch_size is not None and not is_between(asked.batch_size, 1, 2**20):
        raise ValueError(f"per_device_train_batch_size={asked.batch_size} must be at least 1.")
