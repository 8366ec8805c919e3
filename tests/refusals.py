"""The page of what is refused: a row for each fault that the tests cause, with its message.

    PYTHONPATH=. python tests/refusals.py

writes it anew; the tests of the faults compare it with what they see.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from hf_distill.markdown import markdown_table, without_html

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "refused-teachers.md"
_HEAD = """\
# What is refused as a teacher

A teacher that cannot teach a student is refused before anything is trained, with what to change.
These are the {count} kinds of fault that the tests cause, with the messages that they get.
`hf-distill check TEACHER STUDENT` and `hf-distill check column:NAME STUDENT --file FILE` look for
them without training; `train` looks for the same.
"""


def row(fault: str, message: str) -> str:
    """Return a fault and its message as a row of the page: on one line, without paths.

    Without what libraries say also, which is not the same in every version.
    """
    text = re.sub(r"(?<=')/[^']*/(?=[^'/]+')", "", " ".join(message.split()))
    text = re.sub(r"(not JSON \().*?(?=\)\. )|(cannot be loaded: ).*", r"\1\2…", text)
    return markdown_table((fault, without_html(text)), []).splitlines()[0]


def rows_of(title: str) -> dict[str, str]:
    """Return the rows of a part of the page by fault."""
    part = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
    return {line.removeprefix("| ").split(" | ")[0]: line for line in lines}


def write(parts: Iterable[tuple[str, Iterable[str], Callable[[str], str]]]) -> None:
    """Write the page: for each part its title, its faults, and what causes one."""
    content, count = "", 0
    for title, faults, cause in parts:
        rows = [row(fault, cause(fault)) for fault in faults]
        count += len(rows)
        head = markdown_table(("fault", "message"), [])
        content += "\n".join([f"\n## {title}\n", head, *rows, ""])
    PAGE.write_text(_HEAD.format(count=count) + content, encoding="utf-8")


if __name__ == "__main__":
    sys.path += [str(TESTS / "teachers"), str(TESTS / "compatibility")]
    import test_bad_columns as columns
    import test_bad_pairs as pairs

    def of_pair(fault: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return pairs.refusal(fault, Path(folder))

    write(
        [
            (columns.TITLE, columns.COLUMNS, columns.refusal),
            (columns.TITLE_OF_WORDS, columns.WORDS, columns.refusal_of_words),
            (pairs.TITLE, pairs.BAD_PAIRS, of_pair),
        ]
    )
