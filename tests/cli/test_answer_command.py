from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import WINDOWS, Files, Result

from hf_distill import QuestionAnswerer

TEXT = "paris, in france, is on the [river] seine."
QUESTION = "river?"


@pytest.fixture
def ask(files: Files, program: Callable[..., Result]) -> Callable[..., Result]:
    def call(*argv: object) -> Result:
        fixed = ("--model", files.models["teacher"], "--question", QUESTION, "--device", "cpu")
        return program("answer", *fixed, *WINDOWS, *argv)

    return call


def expected(files: Files, **options: object) -> list:
    answerer = QuestionAnswerer.from_pretrained(files.models["teacher"], device="cpu")
    return answerer(question=QUESTION, context=TEXT, max_length=48, doc_stride=8, **options)


def test_json_is_what_the_answerer_says(files: Files, ask: Callable[..., Result]) -> None:
    result = ask("--context", TEXT, "--top_k", 4, "--json")
    assert result.status == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["question"] == QUESTION
    wanted = expected(files, top_k=4)
    assert len(wanted) == 4
    assert [one["text"] for one in content["answers"]] == [one.text for one in wanted]
    for got, one in zip(content["answers"], wanted, strict=True):
        assert got["score"] == pytest.approx(one.score)
        assert TEXT[got["start"] : got["end"]] == got["text"]


def test_always_answer_and_threshold(files: Files, ask: Callable[..., Result]) -> None:
    never = json.loads(ask("--context", TEXT, "--json", "--no_answer_threshold=-1000").stdout)
    assert never["answers"][0]["text"] == ""
    shown = ask("--context", TEXT, "--no_answer_threshold=-1000").stdout
    assert shown.startswith("(the text does not answer this)")
    always = ask("--context", TEXT, "--json", "--no_answer_threshold=-1000", "--always_answer")
    wanted = expected(files, no_answer_threshold=None)[0]
    assert json.loads(always.stdout)["answers"][0]["text"] == wanted.text != ""


def test_context_from_a_file_and_from_the_standard_input(
    tmp_path: Path, ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    wanted = ask("--context", TEXT, "--json").stdout
    assert "answers" in wanted
    assert ask("--context_file", path, "--json").stdout == wanted
    for argv in ([], ["--context_file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT))
        assert ask(*argv, "--json").stdout == wanted


def test_places_count_line_breaks_as_they_are_in_the_file(
    tmp_path: Path, ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ("\r\n\r\n" + TEXT.replace(" ", "\r\n")).encode()
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    stream = io.TextIOWrapper(io.BytesIO(content), "utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    for argv in (["--context_file", path], []):
        answers = json.loads(ask(*argv, "--json", "--top_k", 3, "--always_answer").stdout)[
            "answers"
        ]
        assert len(answers) == 3
        for one in answers:
            assert content.decode()[one["start"] : one["end"]] == one["text"] != ""


@pytest.mark.parametrize("name", ["--question", "--context"])
def test_half_a_character(ask: Callable[..., Result], name: str) -> None:
    result = ask("--context", TEXT, name, "Wien \udce4")
    assert result.status == 2
    assert f"the {name[2:]} is not text in UTF-8: it holds half a character" in result.stderr


def test_table_shows_square_brackets(files: Files, ask: Callable[..., Result]) -> None:
    result = ask("--context", TEXT, "--top_k", 30, "--always_answer")
    assert result.status == 0
    texts = [one.text for one in expected(files, top_k=30, no_answer_threshold=None)]
    assert any("[river]" in text for text in texts)
    for text in texts:
        assert text in result.stdout


@pytest.mark.parametrize(
    ("argv", "fragments"),
    [
        (["--context", "a", "--context_file", "b"], ["either --context or --context_file"]),
        (["--context_file", "nowhere.txt"], ["--context_file nowhere.txt", "no such file"]),
        (["--context_file", "BINARY"], ["not a text in UTF-8"]),
        (["--context", "a", "--model", "./nowhere"], ["--model ./nowhere"]),
        (["--context", "a", "--top_k", "0"], ["top_k=0"]),
        (["--context", "a", "--question", " "], ["question"]),
        (["--context_file", "-"], ["no text"]),
        (["--context", "a", "--max_length", "500"], ["max_length=500", "64"]),
    ],
)
def test_bad_requests(
    argv: list[str],
    fragments: list[str],
    tmp_path: Path,
    ask: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    result = ask(*(str(binary) if word == "BINARY" else word for word in argv))
    assert result.status == 2
    for fragment in fragments:
        assert fragment in result.stderr


def test_terminal_without_a_text(
    ask: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    result = ask()
    assert result.status == 2
    assert "--context" in result.stderr and "pipe" in result.stderr
