"""A ``Trainer`` whose checkpoints are whole or not used, and fit the run that goes on from them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_distill.checkpoints.record import (
    RECORD_FILE,
    UNFINISHED_FILE,
    check_checkpoint,
    last_complete_checkpoint,
    write_record,
)
from hf_distill.checkpoints.termination import (
    TERMINATED,
    Terminated,
    TerminationCallback,
    noting_sigterm,
)

logger = logging.getLogger(__name__)

_TORCH_SAVE = ("inline_container", "PytorchStreamWriter")
"""What the errors of ``torch.save`` have in common; they have no class of their own."""


class CheckpointingTrainer(Trainer):
    """What ``DistillationTrainer`` does about checkpoints; see there."""

    _settings: Mapping[str, Any] = {}
    _saved_step = 0

    def _distillation_settings(self) -> Mapping[str, Any]:
        """What the run depends on, apart from what ``Trainer`` knows."""
        return {}

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``Trainer.train``, from a complete checkpoint of the same distillation.

        Raises:
            ValueError: there is no such checkpoint, or it is incomplete or of another run.
            SystemExit: after a SIGTERM, when a checkpoint is saved.
        """
        self._settings = self._distillation_settings()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(
                str(self.args.output_dir), of_plain_trainer=not self._settings
            )
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint=True: there is no complete checkpoint in output_dir "
                    f"{self.args.output_dir!r}; leave it out to begin anew."
                )
        if resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint, self._settings)
        if self.args.enable_jit_checkpoint:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        termination = TerminationCallback(self.accelerator)
        self._saved_step = 0
        self.add_callback(termination)
        try:
            with noting_sigterm(termination.note):
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            # Also one that came after the last step: a second stage must not begin.
            if not termination.any_was_told():
                return output
        except Terminated:
            pass
        finally:
            self.remove_callback(termination)
        with noting_sigterm(termination.note):
            self._save_before_the_end(*args, **kwargs)
        raise SystemExit(TERMINATED)

    def _save_before_the_end(self, trial: Any = None, *args: Any, **kwargs: Any) -> None:
        """Save the step that a SIGTERM came after, unless it is saved already."""
        step = self.state.global_step
        if step > self._saved_step:
            self._save_checkpoint(self.model_wrapped, trial)
        saved = "before the first step, so nothing was saved."
        if step:
            saved = f"saved at step {step}; resume with resume_from_checkpoint=True."
        logger.warning(f"SIGTERM: {saved}")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = self._get_output_dir(trial=trial)
        folder = Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit = self.args.save_total_limit
        # Trainer deletes older ones before all processes have written the new one.
        self.args.save_total_limit = None
        try:
            with self._nothing_half_written(folder):
                if self.args.should_save:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / UNFINISHED_FILE).touch()
                    (folder / RECORD_FILE).unlink(missing_ok=True)
                super()._save_checkpoint(model, trial)
                self._save_further(folder)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_record(folder, self._settings)
                    (folder / UNFINISHED_FILE).unlink()
                self._saved_step = self.state.global_step
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(run, limit, best_model_checkpoint=best, use_mtime=True)

    def _save_further(self, folder: Path) -> None:
        """Write into a checkpoint what it needs beyond the model; every process calls it."""

    @contextmanager
    def _nothing_half_written(self, folder: Path) -> Iterator[None]:
        """Delete a checkpoint that cannot be written; the older ones are there still."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(n in str(error) for n in _TORCH_SAVE):
                raise
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            last = last_complete_checkpoint(folder.parent)
            rest = "There is none before it"
            if last is not None:
                rest = f"The one before it, {last}, is complete: go on from it when there is room"
            raise OSError(
                f"The checkpoint {folder} could not be saved, and was deleted: "
                f"{str(error).splitlines()[0]}. {rest}."
            ) from error
