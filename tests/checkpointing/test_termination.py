"""SIGTERM: a checkpoint is saved, the run ends with 143, and goes on to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_runs import trainer_for
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_distill.checkpointing import last_complete_checkpoint
from hf_distill.intermediate import PROJECTIONS_FILE


def run(folder: Path, processes: int, step: int) -> None:
    folder.mkdir(exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = str(Path(__file__).with_name("terminated.py"))
    subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), script, str(folder), str(step)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_terminated_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    processes = 2
    run(tmp_path / "whole", processes, -1)
    folder = tmp_path / "terminated"
    run(folder, processes, 3)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [p.read_text() for p in sorted(folder.glob("exit-*"))] == ["143"] * processes
    assert not (folder / "final").exists()
    run(folder, processes, -1)
    for name in ("model.safetensors", PROJECTIONS_FILE):
        whole, resumed = (load_file(f / "final" / name) for f in (tmp_path / "whole", folder))
        assert whole.keys() == resumed.keys() and whole
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


class Terminate(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("strategy", ["no", "steps", "best"])
def test_it_saves_whatever_the_strategy_and_leaves_evaluation_out(
    strategy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"save_strategy": strategy}
    if strategy == "best":
        options |= {"metric_for_best_model": "loss", "load_best_model_at_end": True}
    trainer = trainer_for(
        tmp_path,
        callbacks=[Terminate()],
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=trainer_for(tmp_path).train_dataset,
        **options,
    )
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 143
    assert "SIGTERM: saved at step 2" in caplog.text
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not any("eval_loss" in entry for entry in trainer.state.log_history)


def test_the_handler_before_it_is_there_again(tmp_path: Path) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        trainer_for(tmp_path).train()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            trainer_for(tmp_path, callbacks=[Terminate()]).train()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM] * 2


def test_training_in_another_thread_does_without(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 3


def test_transformers_own_way_is_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append(signal.getsignal(signal.SIGTERM))

    try:
        trainer_for(tmp_path, callbacks=[Look()], enable_jit_checkpoint=True).train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "jit" in found[0].__module__
