from __future__ import annotations

import math
from pathlib import Path

import pytest

from hf_distill.cli import main as program
from hf_distill.extras import MissingExtraError, require


def test_what_is_installed_is_imported() -> None:
    assert require("math", "plots") is math


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.inner"])
def test_what_is_missing_is_named_with_its_extra(module: str) -> None:
    with pytest.raises(MissingExtraError) as raised:
        require(module, "sweep")
    assert str(raised.value) == 'no_such_package is not installed: pip install "hf-distill[sweep]"'
    assert isinstance(raised.value, ImportError) and raised.value.name == "no_such_package"


def test_a_package_that_is_broken_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("half_installed", "sweep")


def test_the_program_shows_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> None:
        require("no_such_package", "plots")

    monkeypatch.setattr("hf_distill.cli.recipes.run", run)
    assert program.main(["recipes"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "hf-distill recipes: error: no_such_package is not installed: "
        'pip install "hf-distill[plots]"'
    )
