"""A report as one HTML file: no script, no request, for screens of any size and for paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

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

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--muted:#57606a;--paper:#fff;--card:#f5f7f9;
--line:#d5dae0;--grid:#dde2e7;--accent:#0b5c9c}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ec;--muted:#9aa4ae;--paper:#12161b;
--card:#1b2128;--line:#333b45;--grid:#2c343d;--accent:#6cb6ff}}
@media print{:root{color-scheme:light;--ink:#000;--muted:#444;--paper:#fff;--card:#fff;
--line:#bbb;--grid:#ddd;--accent:#000}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
h1{font-size:1.75rem;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
.subtitle{color:var(--muted);margin:.35rem 0 1rem}
.headline{font-size:1.1rem;font-weight:600;margin:.3rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;
margin:1.25rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem}
.tile b{display:block;font-size:1.7rem;line-height:1.2;color:var(--accent)}
.tile span{color:var(--muted);font-size:.85rem;line-height:1.35;display:block;margin-top:.2rem}
.wide{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-size:.92rem;min-width:min(100%,22rem)}
th,td{text-align:left;vertical-align:top;padding:.38rem .9rem .38rem 0;
border-bottom:1px solid var(--line);overflow-wrap:break-word}
thead th{border-bottom:2px solid var(--line);white-space:nowrap}
tbody th{font-weight:400;color:var(--muted);min-width:7rem}
tr.sub th{padding-left:1rem;font-size:.85rem}tr.sub td{font-size:.85rem;color:var(--muted)}
.numbers td,.numbers thead th:not(:first-child){text-align:right;padding:.38rem 0 .38rem .9rem;
font-variant-numeric:tabular-nums}
.numbers{width:100%}
.numbers td{white-space:nowrap}
.numbers td.long{white-space:normal;overflow-wrap:anywhere}
p{margin:.5rem 0;overflow-wrap:anywhere}
.note{color:var(--muted);font-size:.88rem;margin:.25rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.25rem;
margin:1rem 0}
figure{margin:0;break-inside:avoid}
figure svg{width:100%;height:auto;display:block}
figure text{fill:var(--ink)}
figcaption{font-size:.88rem;color:var(--muted)}figcaption b{color:var(--ink);display:block}
.example{background:var(--card);border:1px solid var(--line);border-radius:.5rem;
padding:.7rem 1rem;margin:.6rem 0;break-inside:avoid}
.example p{white-space:pre-line;margin:0 0 .4rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .9rem;margin:0;font-size:.92rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem 1rem;
font:.84rem/1.5 ui-monospace,"SFMono-Regular",Consolas,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
footer{margin-top:3rem;color:var(--muted);font-size:.85rem}
@media (max-width:30rem){main{padding:1rem .9rem 2rem}h1{font-size:1.4rem}
table{font-size:.8rem}.numbers td,.numbers thead th:not(:first-child){padding-left:.5rem}
.numbers thead th,.numbers .sub td{white-space:normal}tr.sub td{font-size:.74rem}
.numbers tbody th{min-width:0}tr.sub th{padding-left:.5rem;font-size:.76rem}}
@media print{body{font-size:11pt}main{max-width:none;padding:0}h2{break-after:avoid}
tr{break-inside:avoid}}
""".strip()


_LONG = ' class="long"'
_SHORT = 13
"""Characters of a cell that is kept on one line."""


def html_page(page: Page) -> str:
    """Return the page; every text is escaped."""
    parts = [
        f"<h1>{_text(page.title)}</h1>",
        _optional("p", "subtitle", page.subtitle),
        *(_optional("p", "headline", sentence) for sentence in page.headline),
    ]
    if page.tiles:
        tiles = (
            f'<div class="tile"><b>{_text(v)}</b><span>{_text(n)}</span></div>'
            for v, n in page.tiles
        )
        parts.append(f'<div class="tiles">{"".join(tiles)}</div>')
    for section in page.sections:
        parts.append(f"<section><h2>{_text(section.title)}</h2>{_blocks(section.blocks)}</section>")
    parts.append(f"<footer>{_text(page.footer)}</footer>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(page.title)}</title>\n<style>\n{_STYLE}\n</style></head>\n"
        "<body><main>\n" + "\n".join(filter(None, parts)) + "\n</main></body></html>\n"
    )


def _blocks(blocks: Sequence[Block]) -> str:
    """Return blocks, with pictures that follow each other side by side."""
    parts = []
    for is_chart, together in groupby(blocks, lambda block: isinstance(block, Chart)):
        text = "\n".join(map(_block, together))
        parts.append(f'<div class="charts">{text}</div>' if is_chart else text)
    return "\n".join(parts)


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h3>{_text(block.text)}</h3>"
    if isinstance(block, Paragraph):
        return f'<p class="note">{_text(block.text)}</p>'
    if isinstance(block, Commands):
        return f"<pre>{_text(chr(10).join(block.lines))}</pre>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chart):
        return _chart(block)
    assert isinstance(block, Example)
    facts = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in block.facts.items())
    return f'<div class="example"><p>{_text(block.text)}</p><dl>{facts}</dl></div>'


def _table(table: Table) -> str:
    head = ""
    if any(table.header):
        names = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.header)
        head = f"<thead><tr>{names}</tr></thead>"
    rows = []
    for name, *cells in table.rows:
        kind = ' class="sub"' if name.startswith("  ") else ""
        columns = "".join(f"<td{_LONG * (len(cell) > _SHORT)}>{_text(cell)}</td>" for cell in cells)
        rows.append(f'<tr{kind}><th scope="row">{_text(name.strip())}</th>{columns}</tr>')
    style = ' class="numbers"' if table.numbers else ""
    return f'<div class="wide"><table{style}>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _chart(chart: Chart) -> str:
    caption = f"<figcaption><b>{_text(chart.title)}</b>{_text(chart.description)}</figcaption>"
    return f"<figure>{chart.svg}{caption}</figure>"


def _optional(tag: str, kind: str, text: str) -> str:
    return f'<{tag} class="{kind}">{_text(text)}</{tag}>' if text else ""


def _text(text: object) -> str:
    """Return a text as HTML shows it; characters that HTML cannot hold become U+FFFD."""
    return escape(UNSEEN.sub("\ufffd", str(text)).replace("\r", "\n"))
