"""Pushes the plain student of a run with its card, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_distill.files import display_name
from hf_distill.hub.card import write_card
from hf_distill.hub.contents import LOSSES_FILE, published_files
from hf_distill.hub.facts import hub_id, student_facts, write_facts
from hf_distill.hub.push import (
    create_repository,
    forget_broken_pushes,
    hub_errors,
    push_folder,
    push_in_background,
    say_not_pushed,
)
from hf_distill.plotting import add_loss_plot


class HubPublisher:
    """Writes the report on a student, and pushes both.

    Args:
        args: where the student is, and where it is pushed.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self._args = args
        self._facts: dict[str, Any] = {}

    @property
    def folder(self) -> Path:
        """The folder of the student."""
        return Path(str(self._args.output_dir))

    def add_facts(self, **facts: Any) -> None:
        """Add what else is known about the student: recipe, data, earlier stages, scores."""
        self._facts |= facts

    def facts(
        self, model: Any, task: str | None, state: TrainerState, stage: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return how the student was made, as ``distillation.json`` has it."""
        facts = {**student_facts(model, task, state), **self._facts}
        base_model = facts.pop("base_model", None)
        if base_model is not None:
            facts["student"]["base_model"] = base_model
        facts["stages"] = [*self._facts.get("stages", ()), stage]
        return facts

    @property
    def default_name(self) -> str:
        """The repository's name as it was given, or else that of the folder."""
        return self._args.hub_model_id or self.folder.resolve().name

    def check_strategy(self) -> None:
        """Refuse to publish whole checkpoints.

        Raises:
            ValueError: ``hub_strategy`` would.
        """
        strategy = HubStrategy(self._args.hub_strategy)
        if strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):
            raise ValueError(
                f"hub_strategy={strategy.value!r} publishes whole checkpoints, and "
                "those have pickles, paths of this machine and the token in them. Set "
                "hub_strategy to 'every_save' to publish the student at every checkpoint, or "
                "'end'; keep the checkpoints themselves where you train."
            )

    def create_repository(self, token: str | None, private: bool | None) -> str:
        """Make the repository, if it is not there yet, and return its id.

        Raises:
            PublishingError: the Hub cannot be reached, or does not allow it.
        """
        args, name = self._args, self.default_name
        remedy = "Nothing is lost; fix that, or leave push_to_hub out and push later."
        with hub_errors(f"The repository {name!r} cannot be used", remedy):
            return create_repository(
                name,
                token=args.hub_token if token is None else token,
                private=args.hub_private_repo if private is None else private,
            )

    def write_report(
        self,
        facts: dict[str, Any],
        state: TrainerState,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: Any = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``README.md``, ``distillation.json`` and the plot of the losses.

        It takes what ``Trainer.create_model_card`` takes; the student's class tells the task.
        """
        # Scripts pass on what they were given, which may be a folder of this machine.
        base_model = hub_id(finetuned_from)
        if base_model is not None:
            facts["student"]["base_model"] = base_model
        given = dataset_tags or dataset
        if given and "train_data" not in facts:
            names = [given] if isinstance(given, str) else list(given)
            facts["train_data"] = ", ".join(map(display_name, names))
            facts["train_data_id"] = hub_id(names[0])
        add_loss_plot(state.log_history, self.folder / LOSSES_FILE)
        write_facts(self.folder, facts)
        write_card(
            self.folder,
            facts,
            title=model_name or self.folder.resolve().name,
            language=language,
            license=license,
            tags=[tags] if isinstance(tags, str) else list(tags or ()),
        )

    def push(
        self,
        repository: str,
        *,
        commit_message: str | None,
        blocking: bool,
        token: str | None,
        revision: str | None,
    ) -> Any:
        """Push the student and its report in one commit; return its address, or a future.

        Raises:
            PublishingError: the Hub cannot be reached, or does not take it.
        """
        options: dict[str, Any] = {
            "commit_message": commit_message or "End of training",
            "token": self._args.hub_token if token is None else token,
            "revision": self._args.hub_revision if revision is None else revision,
        }
        files = published_files(self.folder)
        remedy = (
            f"Nothing is lost: student, card and figures are complete in {self.folder}. Push them "
            f"later with trainer.push_to_hub(), or `hf-distill push {self.folder} --hub_model_id "
            f"{repository}`."
        )
        with hub_errors(f"The student could not be pushed to {repository}", remedy):
            if blocking:
                return push_folder(files, repository, **options)
            return push_in_background(files, repository, folder=self.folder, **options)

    def push_checkpoint(
        self,
        checkpoint: Path,
        repository: str,
        step: int,
        write_report: Callable[[], None],
        *,
        busy: bool,
    ) -> Future[Any] | None:
        """Push the student of a checkpoint while training continues; ``None`` if that fails."""
        try:
            if not busy:
                forget_broken_pushes(self.folder)
            write_report()
            return push_in_background(
                published_files(checkpoint, report=self.folder),
                repository,
                folder=self.folder,
                commit_message=f"Training in progress, step {step}",
                token=self._args.hub_token,
                revision=self._args.hub_revision,
            )
        except Exception as error:  # whatever it is: checkpoint and training are worth more
            say_not_pushed(repository, error)
            return None
