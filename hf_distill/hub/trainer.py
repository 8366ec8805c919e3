"""A ``Trainer`` that pushes a plain student with a card, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from hf_distill.checkpoints import CheckpointingTrainer
from hf_distill.files import display_name
from hf_distill.hub.card import write_card
from hf_distill.hub.contents import LOSSES_FILE, published_files
from hf_distill.hub.facts import hub_id, stage_facts, student_facts, write_facts
from hf_distill.hub.push import (
    create_repository,
    forget_broken_pushes,
    hub_errors,
    push_folder,
    push_in_background,
    say_not_pushed,
)
from hf_distill.plotting import add_loss_plot

_ONLY_STUDENTS = (HubStrategy.END, HubStrategy.EVERY_SAVE)


class PublishingTrainer(CheckpointingTrainer):
    """What ``DistillationTrainer`` does about the Hub; see there."""

    further_facts: Mapping[str, Any] = {}
    """What else is known of how the student was made: recipe, data, earlier stages, scores."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_push: Any = None
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, if it is not there yet.

        Raises:
            ValueError: ``hub_strategy`` would publish whole checkpoints.
            PublishingError: the Hub cannot be reached, or does not allow it.
        """
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy not in _ONLY_STUDENTS:
            raise ValueError(
                f"hub_strategy={strategy.value!r} publishes whole checkpoints, and "
                "those have pickles, paths of this machine and the token in them. Set "
                "hub_strategy to 'every_save' to publish the student at every checkpoint, or "
                "'end'; keep the checkpoints themselves where you train."
            )
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(str(args.output_dir)).resolve().name
        remedy = "Nothing is lost; mend that, or leave push_to_hub out and push later."
        with hub_errors(f"The repository {name!r} cannot be used", remedy):
            # Not Trainer's: up to 5.17 it takes no `private`.
            self.hub_model_id = create_repository(  # type: ignore[assignment]
                name,
                token=args.hub_token if token is None else token,
                private=args.hub_private_repo if private is None else private,
            )

    def distillation_facts(self) -> dict[str, Any]:
        """How the student was made, as ``distillation.json`` has it."""
        facts = {**student_facts(self), **self.further_facts}
        base_model = facts.pop("base_model", None)
        if base_model is not None:
            facts["student"]["base_model"] = base_model
        facts["stages"] = [*self.further_facts.get("stages", ()), stage_facts(self)]
        return facts

    def create_model_card(  # type: ignore[override]
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``README.md``, ``distillation.json`` and the plot of the losses.

        A card that a person wrote is kept; what was measured is put below it.

        Args:
            language: of the texts.
            license: of the student.
            tags: beside those of distillation.
            model_name: the title.
            **kwargs: what else ``Trainer`` takes: ``dataset`` and ``dataset_tags`` name the data,
                ``finetuned_from`` the model that the student was made from.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        facts = self.distillation_facts()
        # Scripts pass on what they were given, which may be a folder of this machine.
        base_model = hub_id(kwargs.get("finetuned_from"))
        if base_model is not None:
            facts["student"]["base_model"] = base_model
        given = kwargs.get("dataset_tags") or kwargs.get("dataset")
        if given and "train_data" not in facts:
            names = [given] if isinstance(given, str) else list(given)
            facts["train_data"] = ", ".join(map(display_name, names))
            facts["train_data_id"] = hub_id(names[0])
        add_loss_plot(self.state.log_history, folder / LOSSES_FILE)
        write_facts(folder, facts)
        write_card(
            folder,
            facts,
            title=model_name or folder.resolve().name,
            language=language,
            license=license,
            tags=[tags] if isinstance(tags, str) else list(tags or ()),
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the plain student with its card, ``distillation.json`` and pictures, in one commit.

        Args:
            commit_message: of the commit.
            blocking: wait for it.
            token: by default ``hub_token``, or that of the environment.
            revision: the branch; by default ``hub_revision``, or ``main``.
            private: of a new repository; by default ``hub_private_repo``.
            **kwargs: what ``create_model_card`` takes.

        Returns:
            The address of the commit; a future if not ``blocking``.

        Raises:
            PublishingError: the Hub cannot be reached, or does not take it. The student is
                complete in ``output_dir``.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        args, folder = self.args, Path(str(self.args.output_dir))
        token = token if token is not None else args.hub_token
        name = self.hub_model_id or args.hub_model_id or folder.resolve().name
        kwargs.setdefault("model_name", name.rpartition("/")[2])
        self.create_model_card(**kwargs)
        remedy = (
            f"Nothing is lost: student, card and figures are complete in {folder}. Push them later "
            f"with trainer.push_to_hub(), or `hf-distill push {folder} --hub_model_id {name}`."
        )
        files = published_files(folder)
        with hub_errors(f"The student could not be pushed to {name}", remedy):
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            self._finish_current_push()
            options: dict[str, Any] = {
                "commit_message": commit_message or "End of training",
                "token": token,
                "revision": revision if revision is not None else args.hub_revision,
            }
            if blocking:
                return push_folder(files, str(self.hub_model_id), **options)
            return push_in_background(files, str(self.hub_model_id), folder=folder, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the student of a checkpoint, beside the training (``hub_strategy=every_save``)."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self._last_push is not None and not self._last_push.done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        folder, name = Path(str(args.output_dir)), str(self.hub_model_id)
        try:
            if not busy:
                forget_broken_pushes(folder)
            self.create_model_card(model_name=name.rpartition("/")[2])
            self._last_push = push_in_background(
                published_files(Path(checkpoint_folder), report=folder),
                name,
                folder=folder,
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=args.hub_token,
                revision=args.hub_revision,
            )
        except Exception as error:  # whatever it is: checkpoint and training are worth more
            say_not_pushed(name, error)

    def _finish_current_push(self) -> None:
        if self._last_push is not None:
            self._last_push.exception()  # waits; a failure was said when it came
