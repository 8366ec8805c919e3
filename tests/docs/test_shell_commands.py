"""Every ``hf-distill …`` that the documentation and the help texts show can be typed."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertConfig

from hf_distill.cli import main, sweep, train
from hf_distill.cli.main import COMMANDS, command_module
from hf_distill.cli.sweep_plan import read_plan
from hf_distill.cli.train_request import read_request

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(r"^(?:hf-distill|(?:accelerate launch|python) .*-m hf_distill) (.*)$")


def commands(text: str) -> Iterator[str]:
    """What a block of shell lines gives to ``hf-distill``; not what is cut short with ``…``."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        found = PROGRAM.match(line.strip())
        if found and "…" not in found[1]:
            yield found[1]


def shown() -> Iterator[tuple[str, str]]:
    """The commands of pages and help texts, with where they are from."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if language in ("", "sh", "bash", "console"):
                yield from ((page.name, command) for command in commands(block))
    yield from (("hf-distill --help", command) for command in commands(main.EPILOG))
    for name in COMMANDS:
        module = command_module(name)
        for command in commands(getattr(module, "EXAMPLES", "")):
            yield f"hf-distill {name} --help", command


def shown_sweep() -> str:
    """The file that the help text of ``sweep`` shows."""
    found = re.search(r"^    task: .*?(?=\n\n)", sweep.EXAMPLES, re.DOTALL | re.MULTILINE)
    assert found is not None
    return textwrap.dedent(found[0])


SHOWN = list(shown())


@pytest.mark.parametrize(
    ("place", "command"), SHOWN, ids=[f"{place}: {command}"[:90] for place, command in SHOWN]
)
def test_it_parses(
    place: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "recipe: bert-medium-squad2\noutput_dir: out\n", encoding="utf-8"
    )
    (tmp_path / "sweep.yaml").write_text(shown_sweep(), encoding="utf-8")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    # The teacher's task is read from its configuration.
    BertConfig(architectures=["BertForQuestionAnswering"]).save_pretrained(tmp_path / "teacher")
    name, *words = shlex.split(command, comments=True)
    assert name in COMMANDS
    if name == "train":
        # Also what the parser alone does not ask for: a teacher, data.
        read_request(train.build_parser(), words)
    elif name == "sweep":
        read_plan(sweep.build_parser(), words)
    else:
        command_module(name).build_parser().parse(words)


def test_there_are_commands_of_every_kind() -> None:
    names = {command.split()[0] for _, command in SHOWN}
    assert {"train", "evaluate", "compare", "answer", "recipes"} <= names
    assert sum(place.endswith(".md") for place, _ in SHOWN) >= 14


def test_a_mistake_would_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = "hf-distill train --baseline \\\n    --student_model BIG --train_file t --task fill-mask"
    (command,) = commands(text)
    with pytest.raises(SystemExit):
        read_request(train.build_parser(), shlex.split(command)[1:])
    assert "--output_dir" in capsys.readouterr().err
