"""A report as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from hf_distill.markdown import markdown_table, without_html
from hf_distill.reports.layout import (
    UNSEEN,
    Block,
    Chart,
    Commands,
    Example,
    Heading,
    Page,
    Paragraph,
    Table,
)

_SPECIAL = re.compile(r"([\\`*_\[\]#~])")


def markdown_page(page: Page, folder: Path) -> str:
    """Return the page; every text is escaped, and pictures are those that are in the folder."""
    parts = [f"# {_text(page.title)}", _text(page.subtitle)]
    parts += [f"**{_text(sentence)}**" for sentence in page.headline]
    parts.append("\n".join(f"- **{_text(value)}** {_text(label)}" for value, label in page.tiles))
    shown: set[str] = set()
    for section in page.sections:
        parts.append(f"## {_text(section.title)}")
        for block in section.blocks:
            if not isinstance(block, Chart):
                parts.append(_block(block))
            elif block.file and block.file not in shown and (folder / block.file).is_file():
                shown.add(block.file)
                parts.append(f"![{_text(block.title)}]({block.file})")
    parts.append(_text(page.footer))
    return "\n\n".join(filter(None, parts)) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return _text(block.text)
    if isinstance(block, Heading):
        return f"### {_text(block.text)}"
    if isinstance(block, Table):
        right = range(1, len(block.header)) if block.numbers else ()
        rows = [[_text(cell.strip()) for cell in row] for row in block.rows]
        return markdown_table(list(map(_text, block.header)), rows, right=right)
    if isinstance(block, Commands):
        return "\n".join(f"    {_line(line)}" for line in block.lines)
    assert isinstance(block, Example)
    facts = "\n".join(f"> - {name}: {_text(value)}" for name, value in block.facts.items())
    return f"> {_text(block.text)}\n>\n{facts}"


def _text(text: object) -> str:
    """Return a text as Markdown and the HTML in it show it, on one line."""
    return _SPECIAL.sub(r"\\\1", without_html(_line(str(text))))


def _line(text: str) -> str:
    return " ".join(UNSEEN.sub("\ufffd", text).split())
