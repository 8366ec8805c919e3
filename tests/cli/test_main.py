from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Result

import hf_distill
from hf_distill.cli.main import COMMANDS, command_module
from hf_distill.extras import MissingExtraError

ROOT = Path(__file__).parents[2]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_three_ways_in_are_one_program() -> None:
    script = "import sys; from hf_distill.cli.main import main; sys.exit(main())"
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    calls = [
        call(sys.executable, "-c", script, "--help"),
        call(sys.executable, "-m", "hf_distill", "--help"),
        call(sys.executable, *launch, "-m", "hf_distill", "--help"),
    ]
    assert [done.returncode for done in calls] == [0, 0, 0]
    assert len({done.stdout for done in calls}) == 1
    for command in COMMANDS:
        assert f"\n  {command} " in calls[0].stdout


def test_console_script_is_declared() -> None:
    assert "hf-distill = hf_distill.cli.main:main" in (ROOT / "setup.cfg").read_text()


def test_help_does_not_wait_for_torch() -> None:
    script = """
import sys
from hf_distill.cli.main import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "transformers", "datasets", "numpy", "rich", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = call(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr


def test_no_command_waits_for_torch_to_help_or_to_name_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("temprature: 5\n")
    config = ["--config", str(tmp_path / "run.yaml")]
    calls = [[name, *words] for name in COMMANDS for words in (["--help"], ["--tset", "1"])]
    calls += [["train", *config], ["sweep", *config], ["train", "--lr_scheduler_type", "up"]]
    script = f"""
import sys
from hf_distill.cli.main import main
for words in {calls!r}:
    try:
        status = main(words)
    except SystemExit as leaving:
        status = leaving.code or 0
    assert status == (0 if "--help" in words else 2), (words, status)
    assert "torch" not in sys.modules, words
"""
    done = call(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"usage: hf-distill {command} " in done.stdout
        assert f"hf-distill {command}: error: there is no option --tset." in done.stderr
    assert done.stderr.count("there is no option 'temprature'. Did you mean temperature?") == 2
    assert "invalid choice: 'up'" in done.stderr


def test_version(program: Callable[..., Result]) -> None:
    assert program("--version").stdout == f"hf-distill {hf_distill.__version__}\n"


def test_without_a_command_there_is_help(program: Callable[..., Result]) -> None:
    result = program()
    assert result.status == 0
    assert "commands:" in result.stdout


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["trian"], "did you mean 'train'?"),
        (["zzz"], f"there are {', '.join(COMMANDS)}."),
        (["--verbose", "train"], "--verbose"),
    ],
)
def test_unknown_command(words: list[str], fragment: str, program: Callable[..., Result]) -> None:
    result = program(*words)
    assert result.status == 2
    assert fragment in result.stderr


def raising(error: BaseException, package: str) -> types.ModuleType:
    """A command that raises an error in the code of ``package``."""
    module = types.ModuleType("hf_distill.cli.answer")
    space = {"__name__": f"{package}.somewhere", "error": error}
    exec("def fail():\n    raise error", space)  # so that the frame belongs to the package
    module.run = lambda argv: space["fail"]()  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("error", "package", "is_user_error"),
    [
        (ValueError("temperature is 0"), "hf_distill", True),
        (ValueError("no such split"), "datasets", True),
        (ValueError("shape mismatch"), "torch", False),
        (ValueError("shape mismatch"), "numpy", False),
        (OSError("disk full"), "json", True),
        (FileNotFoundError("gone"), "hf_distill", True),
        (RuntimeError("wrong launch"), "hf_distill", True),
        (MissingExtraError("optuna is not installed"), "hf_distill", True),
        (RuntimeError("out of memory"), "torch", False),
        (KeyError("bug"), "hf_distill", False),
        (TypeError("bug"), "hf_distill", False),
    ],
)
def test_errors_of_users_and_bugs(
    error: Exception,
    package: str,
    is_user_error: bool,
    program: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hf_distill.cli.answer", raising(error, package))
    result = program("answer")
    if is_user_error:
        assert result.status == 2
        assert result.stderr == f"hf-distill answer: error: {error}\n"
    else:
        assert result.status == 1
        assert re.fullmatch(
            rf"hf-distill answer: unexpected error: {type(error).__name__}: {error} "
            r"\(<string>, line 2\)\. .*HF_DISTILL_DEBUG=1.*\n",
            result.stderr,
        )
    with pytest.raises(type(error)):
        program("--debug", "answer")
    monkeypatch.setenv("HF_DISTILL_DEBUG", "1")
    with pytest.raises(type(error)):
        program("answer")
    monkeypatch.setenv("HF_DISTILL_DEBUG", "0")
    assert program("answer") == result


def test_other_processes_say_who_they_are(
    program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = raising(ValueError("bad"), "hf_distill")
    monkeypatch.setitem(sys.modules, "hf_distill.cli.answer", module)
    monkeypatch.setenv("RANK", "1")
    assert program("answer").stderr.startswith("hf-distill answer (process 1): error: bad\n")


def test_interruption(program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    module = raising(KeyboardInterrupt(), "torch")
    monkeypatch.setitem(sys.modules, "hf_distill.cli.answer", module)
    result = program("answer")
    assert result.status == 130
    assert result.stderr == "hf-distill answer: stopped by Ctrl-C.\n"


def test_words_after_the_command_are_its_own(
    program: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    module = types.ModuleType("hf_distill.cli.answer")
    module.run = seen.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hf_distill.cli.answer", module)
    assert program("answer", "--version", "--debug", "train").status == 0
    assert seen == [["--version", "--debug", "train"]]


def test_a_reader_who_leaves_is_no_error() -> None:
    """As in `hf-distill recipes --json | head -1`."""
    command = [sys.executable, "-m", "hf_distill", "recipes", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        complaints = running.stderr.read()
    assert complaints == b""
    assert running.returncode == 141


def speak(encoding: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Call the program with standard streams of an encoding."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "150"}
    command = [sys.executable, "-m", "hf_distill", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False, env=environment)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_streams_of_another_encoding(encoding: str) -> None:
    """Nothing but the arrows differs, and dashes and the frames of tables."""
    done, there = speak(encoding, "recipes"), speak("utf-8", "recipes")
    assert (done.returncode, done.stderr) == (0, b"")
    printed = done.stdout.decode(encoding)
    assert "bert-medium-squad2" in printed
    arrows = there.stdout.decode().count("→")
    assert arrows and printed.count("->") == arrows


def test_recipes_do_not_wait_for_pytorch() -> None:
    script = "import sys; from hf_distill.cli.main import main; main(['recipes', '--json']); "
    script += "print({'torch', 'datasets'} & sys.modules.keys(), file=sys.stderr)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stderr == b"set()\n"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_json_is_valid_in_every_encoding(encoding: str) -> None:
    script = "from hf_distill.cli.output import make_output_safe, print_json; make_output_safe(); "
    text = "Zoë → 中文 😀 \\udc80"
    script += f'print_json({{"answer": "{text}"}})'
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout.decode(encoding)) == {"answer": "Zoë → 中文 😀 \udc80"}


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_an_error_message_of_another_encoding(encoding: str) -> None:
    done = speak(encoding, "recipes", "東京")
    assert done.returncode == 2
    assert ("東京" if encoding == "utf-8" else "\\u6771\\u4eac") in done.stderr.decode(encoding)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal_and_breaks_no_name(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = command_module(command).build_parser().format_help()
    usage, rest = text.split("\n\n", 1)
    prose, *_ = rest.split("\nexample")
    assert [line for line in prose.splitlines() if len(line) > 80] == []
    assert not re.search(r"\w-\n", prose)
    assert f"hf-distill {command}" in usage
