"""Pieces of HTML; every text that comes from a run is escaped here."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

from .text import visible

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --faint: #656d76; --line: #d8dee4;
  --page: #fff; --box: #f6f8fa; --good: #1a7f37; --bad: #bc4c00 }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9198a1; --line: #3d444d;
  --page: #0d1117; --box: #151b23; --good: #3fb950; --bad: #f0883e }
  img { filter: invert(.93) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem;
  padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
.scroll { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; overflow-wrap: normal }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0;
  border-bottom: 1px solid var(--line) }
thead th { font-weight: 600; color: var(--faint) } tbody th { font-weight: 400 }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap }
.numbers.right td, .numbers.right thead th + th { text-align: right }
.settings tbody th { color: var(--faint) } .settings td { overflow-wrap: anywhere }
@media (max-width: 34rem) { table { font-size: .8rem }
  th, td { padding-right: .6rem } th:last-child, td:last-child { padding-right: 0 }
  table.wide { font-size: .72rem } .wide th, .wide td { padding-right: .4rem } }
.note { color: var(--faint); font-size: .9rem; margin: .4rem 0 }
.problem { border-left: 4px solid var(--bad); background: var(--box); padding: .4rem .8rem }
.good { color: var(--good) } .bad { color: var(--bad) }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  gap: .8rem } .figures img { width: 100%; max-width: 28rem; display: block; background: #fff }
.sample { border: 1px solid var(--line); border-radius: 6px; margin: .7rem 0; overflow: hidden }
.sample > div { padding: .5rem .8rem } .sample .prompt { background: var(--box) }
.sides { display: grid; grid-template-columns: 1fr 1fr; padding: 0 !important }
.sides > div { padding: .5rem .8rem } .sides > div + div { border-left: 1px solid var(--line) }
@media (max-width: 34rem) { .sides { grid-template-columns: 1fr }
  .sides > div + div { border-left: 0; border-top: 1px solid var(--line) } }
.label { color: var(--faint); font-size: .85rem } .text { white-space: pre-wrap }
code, pre { font: .875rem/1.45 ui-monospace, monospace } code { overflow-wrap: anywhere }
pre { overflow-x: auto; background: var(--box); padding: .8rem; border-radius: 6px }
summary { cursor: pointer }
"""


def text(value: object, keep: str = "") -> str:
    """Any value as text that is safe inside an element and inside a quoted attribute."""
    return html.escape(visible(value, keep), quote=True)


def element(tag: str, content: str, kind: str = "") -> str:
    """An element around content that is HTML already."""
    return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"


def paragraph(value: object, kind: str = "") -> str:
    """A paragraph of text."""
    return element("p", text(value), kind)


def heading(level: int, value: object) -> str:
    """A heading of the given level."""
    return element(f"h{level}", text(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> str:
    """A table of texts that scrolls inside its own box; the first cell of a row names the row."""
    top = "".join(element("th", text(name)) for name in head)
    body = "".join(
        element("tr", element("th", text(first)) + "".join(element("td", text(c)) for c in cells))
        for first, *cells in rows
    )
    top = element("thead", element("tr", top)) if any(head) else ""
    return element("div", element("table", top + element("tbody", body), kind), "scroll")


def pictures(names: Mapping[str, bytes]) -> str:
    """PNG pictures {description: bytes} inside the page, next to each other if there is room."""
    images = [
        f'<img alt="{text(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in names.items()
    ]
    return element("div", "".join(images), "figures") if images else ""


def page(title: str, body: str) -> str:
    """A whole page, which loads nothing and runs nothing."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
