"""What is recorded is let go, so that only what the backward pass needs stays."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from runs import distil
from tiny import model_for
from torch import Tensor

from hf_distill import DistillationTrainer
from hf_distill.layers.recording import Recording


def test_values_and_hidden_states_are_not_kept_for_the_backward_pass(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Scores need no values, and nothing needs the teacher's recordings of the step before."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    clear = Recording.clear

    def watched(recording: Recording) -> None:
        seen.extend(weakref.ref(call.inputs.value) for call in recording.attentions.values())
        seen.extend(weakref.ref(states) for states in recording.hidden_states.values())
        clear(recording)

    class Watch(DistillationTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            alive.append(sum(reference() is not None for reference in seen))
            return loss

    monkeypatch.setattr(Recording, "clear", watched)
    task = "question-answering"
    distil(task, tmp_path, student=model_for(task, seed=0, layers=1), stage="intermediate",
           attention_loss="scores",
           trainer_class=Watch, record_gradients=False)  # fmt: skip
    assert len(seen) == 3 * 6  # values of a layer and hidden states of two, of both, three times
    assert alive == [0, 0, 0]
