"""``hf-distill push``: the student of a finished run to the Hub, with its card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_distill.cli.parsing import CommandParser, Section
from hf_distill.tasks.options import names, option

EXAMPLES = """\
examples:
  hf-distill push distilled --hub_model_id me/small-reader --private
  hf-distill push distilled --hub_model_id me/small-reader --comparison comparison
  hf-distill push distilled --hub_model_id me/small-reader --dry_run

The token is taken from HF_TOKEN, or from what `hf auth login` has stored.
"""
_COMPARISON = ("comparison.json", "comparison.md")
_PICTURE = "comparison.png"
"""There is none without the extra ``plots``."""


@dataclass
class PushArguments:
    """Where `push` pushes to, and what it adds."""

    hub_model_id: str = option(
        MISSING, help="The repository, such as me/small-reader. It is created if it does not exist."
    )
    private: bool = option(False, help="Make a new repository private.")
    revision: str | None = option(help="The branch to push to; main by default.")
    comparison: str | None = option(
        help="The folder that `hf-distill compare` wrote: its table of teacher, student alone and "
        "student distilled goes into the card, with its plot."
    )
    language: str | None = option(help="For the card: the language of the texts, such as en.")
    license: str | None = option(help="For the card: the student's licence, such as apache-2.0.")
    commit_message: str = option("The distilled student", help="Of the commit.")
    dry_run: bool = option(
        False, help="Write the card and list what would be pushed, but push nothing."
    )


def build_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        [PushArguments],
        prog="hf-distill push",
        usage="hf-distill push RUN_FOLDER --hub_model_id REPOSITORY [options]",
        description="Push the student of a finished run to the Hub: weights, tokenizer, model "
        "card, distillation.json and pictures, and nothing else of the folder.",
        sections=[Section("push", ["run_folder", *names(PushArguments)])],
        positional={"run_folder": "The --output_dir of the run."},
        epilog=EXAMPLES,
    )


def run(argv: Sequence[str]) -> None:
    """Write the card and push."""
    options, positional = build_parser().parse(argv)
    folder = Path(positional.run_folder)

    from hf_distill.cli.run_folder import read_log
    from hf_distill.hub import published_files, push_folder, read_facts, write_card
    from hf_distill.hub.contents import LOSSES_FILE
    from hf_distill.hub.push import create_repository, hub_errors
    from hf_distill.plotting import add_loss_plot

    facts = read_facts(folder)
    if options.comparison is not None:
        _take_over(Path(options.comparison), folder)
    add_loss_plot(read_log(folder), folder / LOSSES_FILE)
    card = write_card(
        folder,
        facts,
        title=options.hub_model_id.rpartition("/")[2],
        language=options.language,
        license=options.license,
        repository=options.hub_model_id,
    )
    files = published_files(folder)
    if options.dry_run:
        listed = "\n".join(f"  {name}" for name in files)
        sys.stdout.write(f"{card.read_text(encoding='utf-8')}\nWould be pushed:\n{listed}\n")
        return
    again = f"hf-distill push {folder} --hub_model_id {options.hub_model_id}"
    with hub_errors(
        f"The student could not be pushed to {options.hub_model_id}",
        f"Nothing is lost: it is complete in {folder}. Push it later with `{again}`.",
    ):
        address = push_folder(
            files,
            create_repository(options.hub_model_id, private=options.private or None),
            commit_message=options.commit_message,
            revision=options.revision,
        )
    sys.stdout.write(f"Pushed: {address}\n")


def _take_over(comparison: Path, folder: Path) -> None:
    missing = [name for name in _COMPARISON if not (comparison / name).is_file()]
    if missing:
        raise ValueError(
            f"--comparison {comparison} has no {missing[0]}; name the --output_dir of "
            "`hf-distill compare`."
        )
    for name in (*_COMPARISON, _PICTURE):
        if not (comparison / name).is_file():
            (folder / name).unlink(missing_ok=True)  # of an earlier comparison
        elif (comparison / name).resolve() != (folder / name).resolve():
            shutil.copyfile(comparison / name, folder / name)
