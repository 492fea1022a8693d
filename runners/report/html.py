"""A document as one HTML file: pictures inside, no script, no outside asset, light and dark, readable on a phone."""

import base64
import re
from collections.abc import Sequence
from html import escape

from srgym.runners.report.document import Block, Callout, Document, Figure, Figures, Heading, Panel, Panels, Table, Text

__all__ = ["to_html"]

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2126; --soft: #606973; --line: #dcdfe3; --card: #ffffff;
  --tint: #f3f5f7; --good: #0b7a55; --bad: #b3391f; --warn: #93620a; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e4e7ea; --soft: #98a2ac; --line: #2f353b;
  --card: #1a1e22; --tint: #20252a; --good: #4cc79a; --bad: #f0866b; --warn: #e0ae55; --link: #7db4ee; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: var(--soft); margin-bottom: 1.4rem; }
.interval { white-space: nowrap; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--tint); padding: .1em .3em;
  border-radius: 3px; }
.callout { border-left: 4px solid var(--soft); background: var(--tint); padding: .6rem .9rem; margin: .6rem 0;
  border-radius: 0 4px 4px 0; max-width: 46rem; }
.callout.good { border-color: var(--good); } .callout.bad { border-color: var(--bad); }
.callout.warning { border-color: var(--warn); }
.callout b.tag { display: block; font-size: .72rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); }
.callout.good b.tag { color: var(--good); } .callout.bad b.tag { color: var(--bad); }
.callout.warning b.tag { color: var(--warn); }
figure { margin: 0; }
figcaption, .under { color: var(--soft); font-size: .86rem; }
.under { margin: 0 0 1.4rem; }
.wide { overflow-x: auto; margin: .8rem 0 .4rem; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td:first-child { min-width: min(9rem, 30vw); }
td .interval { white-space: normal; }
table.words th, table.words td { text-align: left; vertical-align: top; min-width: 6rem; }
tr.strong td { font-weight: 600; background: var(--tint); }
.grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  margin: 1rem 0; align-items: start; }
.grid figure { border: 1px solid var(--line); border-radius: 6px; background: var(--card); padding: .6rem; }
.grid figure:only-child { max-width: 44rem; }
.grid img { display: block; width: 100%; height: auto; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; padding-bottom: .5rem; margin: .3rem 0 1.1rem; }
.panels figure { flex: none; }
.panels img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 2px; }
.panels figcaption { padding-top: .2rem; }
"""

# An estimate and its interval, which is broken nowhere but, in a table that is too wide, between the two.
_INTERVAL = r'<span class="interval">\1 [\2,&nbsp;\3]</span>'
_SMALL = 200  # pictures below this many pixels a side are shown at twice their size, each pixel four


def to_html(document: Document) -> str:
    """The whole page."""
    lead = f'<p class="lead">{_inline(document.subtitle)}</p>' if document.subtitle else ""
    body = "\n".join(_block(block) for block in document.blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(document.title)}</h1>\n{lead}\n{body}\n</main>\n</body>\n</html>\n"
    )


def _inline(text: str) -> str:
    text = escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\[([^\]]+)\]\(([\w.#-][\w./#-]*)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"([+\u2212]?[\d.]+) \[([^\],<]*), ([^\]<]*)\]", _INTERVAL, text)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{_inline(block.text)}</p>"
        case Callout():
            tag = f'<b class="tag">{escape(block.heading)}</b>'
            return f'<div class="callout {block.kind}" role="note">{tag}{_inline(block.text)}</div>'
        case Table():
            return _table(block)
        case Figures():
            return f'<div class="grid">{"".join(_figure(figure) for figure in block.figures)}</div>'
        case Panels():
            rows = "".join(_panel_row(title, panels) for title, panels in block.rows)
            return rows + (f"<p><small>{_inline(block.caption)}</small></p>" if block.caption else "")


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(column)}</th>' for column in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        marked = ' class="strong"' if i in table.strong else ""
        cells = [_breakable(_inline(row[0])), *map(_inline, row[1:])]
        rows.append(f"<tr{marked}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    kind = ' class="words"' if table.words else ""
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    caption = f'<p class="under">{_inline(table.caption)}</p>' if table.caption else ""
    return f'<div class="wide"><table{kind}>{inside}</table></div>{caption}'


def _breakable(text: str) -> str:
    """A name that may be broken into lines after its dots and underscores."""
    return re.sub(r"(?<=\w)([._])(?=[a-z])", r"\1<wbr>", text)


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _figure(figure: Figure) -> str:
    caption = f"<strong>{escape(figure.title)}.</strong> {_inline(figure.caption)}".strip()
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(figure.dark)}">'
        f'<img src="{_data(figure.light)}" alt="{escape(figure.title)}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _panel_row(title: str, panels: Sequence[Panel]) -> str:
    shown = []
    for panel in panels:
        times = 2 if max(panel.width, panel.height) <= _SMALL else 1
        shown.append(
            f'<figure><img src="{_data(panel.png)}" width="{panel.width * times}" height="{panel.height * times}" '
            f'alt="{escape(f"{title}: {panel.label}")}"><figcaption>{escape(panel.label)}</figcaption></figure>'
        )
    return f'<h3>{escape(title)}</h3><div class="panels">{"".join(shown)}</div>'
