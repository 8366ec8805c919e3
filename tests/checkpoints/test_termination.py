"""SIGTERM: a checkpoint is saved, the run ends with 143, and goes on to the same weights."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
from accelerate import Accelerator
from checkpoint_runs import TASK, same, trainer_for, weights
from safetensors.torch import load_file
from tiny import dataset_for
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_distill import DistillationTrainer
from hf_distill.checkpoints import CheckpointKeeper, check_checkpoint, last_complete_checkpoint
from hf_distill.checkpoints.record import write_record
from hf_distill.layers import PROJECTIONS_FILE


def run(folder: Path, processes: int, step: int) -> None:
    folder.mkdir(exist_ok=True)
    done = forked.run(
        Path(__file__).with_name("terminated.py"),
        *(str(folder), str(step)),
        processes=processes,
        environment={"ACCELERATE_USE_CPU": "true"},
    )
    assert done.ok, done.stderr


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


class TerminateIn(TrainerCallback):
    """Sends a SIGTERM at some moment of the last step, or of an evaluation at another step."""

    def __init__(self, moment: str, step: int = 3) -> None:
        self.moment, self.step, self.seen = moment, step, 0

    def _at(self, moment: str, state: Any) -> None:
        if moment == self.moment and state.global_step == self.step:
            self.seen += 1
            if self.seen == 1:
                signal.raise_signal(signal.SIGTERM)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("evaluation", state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("metrics", state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("save", state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("end of the epoch", state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("end", state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "train_runtime" in logs:  # what follows is load_best_model_at_end
            self._at("before the best is loaded", state)


def evaluated(folder: Path, best: bool, saves: bool, **options: Any) -> DistillationTrainer:
    """Three steps in the middle of an epoch, each evaluated; the first of them is the best."""
    return trainer_for(
        folder,
        eval_dataset=dataset_for(TASK, 4),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps" if saves else "no",
        load_best_model_at_end=best,
        metric_for_best_model="loss_hidden_states",
        greater_is_better=False,
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, DistillationTrainer]:
    trainers = {}
    for best in (False, True):
        trainers[best] = evaluated(tmp_path_factory.mktemp("whole"), best, True)
        trainers[best].train()
        assert trainers[best].state.best_global_step == 1
    assert not same(*map(weights, trainers.values()))
    return trainers


@pytest.mark.parametrize(
    ("moment", "best", "saves"),
    [
        ("evaluation", False, False),
        ("evaluation", True, True),
        ("metrics", False, False),
        ("save", False, True),
        ("end of the epoch", False, False),
        ("before the best is loaded", True, True),
        ("end", True, True),
        ("end", False, False),
    ],
)
def test_after_the_last_step_it_is_not_swallowed(
    moment: str, best: bool, saves: bool, whole: dict[bool, Any], tmp_path: Path
) -> None:
    """The run ends, and resumed it is done at once, with the weights of one that was not told."""
    before = signal.getsignal(signal.SIGTERM)
    trainer = evaluated(tmp_path, best, saves, callbacks=[TerminateIn(moment)])
    with pytest.raises(SystemExit) as raised:
        trainer.train()
    assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    resumed = evaluated(tmp_path, best, saves)
    assert resumed.train(resume_from_checkpoint=True).global_step == 3
    assert same(weights(resumed), weights(whole[best]))


def test_an_evaluation_is_left_at_once(tmp_path: Path) -> None:
    told = TerminateIn("evaluation", step=2)
    trainer = trainer_for(
        tmp_path,
        callbacks=[told],
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=trainer_for(tmp_path).train_dataset,
        per_device_eval_batch_size=2,
    )
    with pytest.raises(SystemExit):
        trainer.train()
    assert told.seen == 1  # of eight batches
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_before_the_first_step_there_is_nothing_to_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for(
        tmp_path,
        callbacks=[TerminateIn("evaluation", step=0)],
        eval_on_start=True,
        eval_dataset=trainer_for(tmp_path).train_dataset,
    )
    with pytest.raises(SystemExit):
        trainer.train()
    assert "SIGTERM: before the first step, so nothing was saved." in caplog.text
    assert not list(tmp_path.glob("checkpoint-*"))


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


def test_transformers_own_way_waits_for_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes do not stop at the same step, so a question to all would not be answered."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: asked.append(tensor))
    counts = {}
    for own in (True, False):
        trainer = trainer_for(tmp_path / str(own), enable_jit_checkpoint=not own)
        keeper, settings = trainer.checkpoints, trainer.distillation_settings()
        several: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
        keeper.begin(None, str(tmp_path), settings, several, evaluate=lambda: None)
        train = partial(keeper.on_step_end, trainer.args, TrainerState(), TrainerControl())
        train() if trainer.args.enable_jit_checkpoint else keeper.run(train)
        counts[own] = len(asked)
        asked.clear()
    assert counts == {True: 2, False: 0}


def test_an_evaluation_to_make_up_for_is_not_lost_by_a_checkpoint_before_it(tmp_path: Path) -> None:
    """As transformers' own way writes one before the first step, if a second SIGTERM comes."""
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    write_record(folder, {"stage": "prediction"}, evaluation_left_out=True)
    keeper, evaluations = CheckpointKeeper(), []
    begin = partial(
        keeper.begin, str(folder), str(tmp_path), {"stage": "prediction"}, Accelerator()
    )
    begin(evaluate=lambda: evaluations.append(1))
    with keeper.writing(folder, TrainerState(global_step=2), writes=True):
        pass
    begin(evaluate=lambda: evaluations.append(2))
    keeper.make_up_evaluation()
    keeper.make_up_evaluation()
    assert evaluations == [2]
    with keeper.writing(folder, TrainerState(global_step=2), writes=True):
        pass
    assert check_checkpoint(folder)["evaluation_left_out"] is False


class TerminateAt(TrainerCallback):
    """Sends a SIGTERM at the first event of a kind at a step."""

    def __init__(self, event: str, step: int) -> None:
        def at(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and not self.sent:
                self.sent = True
                signal.raise_signal(signal.SIGTERM)

        self.sent = False
        setattr(self, event, at)


def _entries(trainer: DistillationTrainer) -> list[dict[str, Any]]:
    noise = ("runtime", "per_second", "flos", "train_loss")
    return [
        {k: v for k, v in entry.items() if not any(n in k for n in noise)}
        for entry in trainer.state.log_history
    ]


@pytest.mark.parametrize("event", ["on_pre_optimizer_step", "on_prediction_step"])
@pytest.mark.parametrize(
    ("strategy", "options", "step", "steps"),
    [
        ("steps", {"eval_steps": 2, "save_steps": 2}, 2, 5),
        ("epoch", {}, 4, 8),  # at the end of an epoch
        ("steps", {"eval_steps": 2, "save_steps": 2}, 6, 6),  # at the end of the training
    ],
)
def test_an_evaluation_that_was_left_out_is_made_up_for(
    strategy: str, options: dict[str, Any], step: int, steps: int, event: str, tmp_path: Path
) -> None:
    """Weights, log and the choice of the best are those of a run that was not told to end."""

    def run(name: str, **extra: Any) -> DistillationTrainer:
        return trainer_for(
            tmp_path / name,
            max_steps=steps,
            eval_strategy=strategy,
            save_strategy=strategy,
            eval_dataset={"one": dataset_for(TASK, 4), "two": dataset_for(TASK, 6, seed=3)},
            metric_for_best_model="one_loss_prediction",
            greater_is_better=False,
            teacher_check_samples=0,
            **{**options, **extra},
        )

    whole = run("whole")
    whole.train()
    # An event before the optimizer's step belongs to the step that it ends.
    at = step - 1 if event == "on_pre_optimizer_step" else step
    with pytest.raises(SystemExit):
        run("told", callbacks=[TerminateAt(event, at)]).train()
    assert last_complete_checkpoint(tmp_path / "told") == str(tmp_path / f"told/checkpoint-{step}")
    resumed = run("told")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))
    assert _entries(resumed)[:-1] == _entries(whole)[:-1]
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert resumed.state.best_metric == whole.state.best_metric
    best = [Path(str(t.state.best_model_checkpoint)).name for t in (resumed, whole)]
    assert best[0] == best[1]
