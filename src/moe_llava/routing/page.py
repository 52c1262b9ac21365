"""Plain parts of a self-contained page: no network, no script, readable on a phone, in the dark and in print."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_llava.evaluate.paired import Interval
from moe_llava.routing.compare import FEW, Difference

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --paper: #fff; --panel: #f2f7fb; --line: #ddd;
        --still: #0072b2; --moved: #b34700; --chance: #777; --quiet: #00664a }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a3a7b0; --paper: #16171a; --panel: #202227;
        --line: #3a3d45; --still: #56b4e9; --moved: #ef8a3c; --chance: #9a9ca3; --quiet: #3fc79a } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.answer { font-size: 1.15rem; border-left: .3rem solid var(--still); padding: .4rem 1rem; background: var(--panel) }
.note, small { color: var(--soft); font-size: .9rem } small { font-size: .78rem }
.scroll { overflow-x: auto; margin-bottom: 1rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem } caption { text-align: left; color: var(--soft) }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
td:first-child { min-width: 5rem } th, td { overflow-wrap: normal }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } td.number { white-space: nowrap }
.verdict { font-weight: 600; white-space: nowrap } .effect { color: var(--moved) } .quiet { color: var(--quiet) }
svg { display: block; max-width: 38rem }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; paint-order: stroke; stroke: var(--paper);
       stroke-width: 4px }
svg .zero { stroke: var(--soft); stroke-dasharray: 3 3 } svg .chance { --colour: var(--chance) }
svg .still { --colour: var(--still) } svg .moved { --colour: var(--moved) }
svg .bar { stroke: var(--colour); stroke-width: 3; fill: var(--colour) } svg .chance .bar { stroke-width: 1.5 }
svg .chance circle { fill: var(--paper) }
img { max-width: 100%; height: auto; background: #fff }
@media (max-width: 40rem) { .stack thead { display: none } .stack tr { display: block; padding: .5rem 0;
       border-bottom: 1px solid var(--line) } .stack td { display: block; border: 0; padding: .1rem 0 } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #333; --paper: #fff; --panel: #f2f7fb; --line: #bbb;
       --still: #0072b2; --moved: #b34700; --chance: #666; --quiet: #00664a }
  body { max-width: none; margin: 0; font-size: 10.5pt }
  h2, h3 { break-after: avoid } tr, svg, img { break-inside: avoid }
  .scroll { overflow: visible } table { font-size: .8rem } th, td { padding: .2rem .3rem }
  td.number small { white-space: normal } svg { max-width: 26rem } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n<body>{body}</body></html>\n"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: frozenset[int] | set[int] = frozenset(),
    caption: str = "",
    stacks: bool = False,
) -> str:
    """Rows of ready HTML; the columns in `numbers` are set right. On a phone it scrolls, or `stacks` cell on cell."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    kind = ' class="stack"' if stacks else ""
    return (
        f'<div class="scroll"><table{kind}>{above}<thead><tr>{cells(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def nats(interval: Interval) -> str:
    """A change of log-probability for a cell: bold where its interval excludes 0, plain 0 where it is exactly that."""
    return _change(interval, 1.0, 4)


def points(interval: Interval | None) -> str:
    """The same for a change of accuracy, in percentage points; empty where nothing was answered."""
    return "" if interval is None else _change(interval, 100.0, 2)


def _change(interval: Interval, scale: float, digits: int) -> str:
    if interval.all_zero:
        return "0"
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    if interval.groups < FEW:
        return mean
    marked = f"<b>{mean}</b>" if _is_sure(interval) else mean
    return f"{marked}<br><small>{low} to {high}</small>"


def splits_table(columns: dict[str, dict[str, Difference]]) -> str:
    """Changes by modality and question type: a row for each split, a column for each of several things that were done.

    `columns`: title -> split -> difference; all have the same splits.
    """
    rows = []
    for name, first in next(iter(columns.values())).items():
        cells = [html.escape(name), f"{first.n:,}"]
        for differences in columns.values():
            one = differences[name]
            cells.append("<br>".join(filter(None, (nats(one.log_probability), points(one.accuracy)))))
        rows.append(cells)
    head = ["answers", "n", *map(html.escape, columns)]
    caption = (
        "Change in nats an answer, then in percentage points, with intervals where there are "
        f"{FEW} independent images or questions. Bold: the interval excludes 0."
    )
    return table(head, rows, numbers=set(range(1, len(head))), caption=caption)


@dataclass(frozen=True)
class Bar:
    """A mean and its interval; a `control` is drawn paler, with a hollow dot."""

    name: str
    interval: Interval
    control: bool = False


def intervals_figure(bars: Sequence[Bar], unit: str, scale: float = 1.0) -> str:
    """Means and intervals under each other on one axis with its zero."""
    side, width, step = 24, 480, 40
    low = min(0.0, *(scale * bar.interval.low for bar in bars))
    high = max(0.0, *(scale * bar.interval.high for bar in bars))
    room = (high - low) or 1.0

    def x(value: float) -> float:
        return round(side + width * (value - low) / room if high > low else side + width / 2, 1)

    height = step * len(bars) + 44
    parts = [
        f'<svg viewBox="0 0 {2 * side + width} {height}" role="img" aria-label="{html.escape(unit)}">',
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{height - 40}"/>',
    ]
    for number, bar in enumerate(bars):
        y = 30 + number * step
        kind = "chance" if bar.control else "moved" if _is_sure(bar.interval) else "still"
        mean, start, end = (x(scale * value) for value in (bar.interval.mean, bar.interval.low, bar.interval.high))
        parts += [
            f'<g class="{kind}"><text x="4" y="{y - 12}">{html.escape(bar.name)}</text>',
            f'<line class="bar" x1="{start}" x2="{end}" y1="{y}" y2="{y}"/>',
            f'<circle class="bar" cx="{mean}" cy="{y}" r="4.5"/></g>',
        ]
    for value in sorted({low, 0.0, high}):
        if value == 0.0 or abs(x(value) - x(0)) > 40:
            parts.append(f'<text x="{x(value)}" y="{height - 25}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<text x="4" y="{height - 6}">{html.escape(unit)}</text></svg>')
    return "".join(parts)


def _is_sure(interval: Interval) -> bool:
    return interval.excludes_zero and interval.groups >= FEW


def picture(path: Path) -> str:
    """A PNG inside the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img src="data:image/png;base64,{content}" alt="{html.escape(path.stem)}"></p>'


def write_page(path: Path, text: str, figures: dict[str, Any]) -> None:
    """Write the page, and the same figures as JSON beside it; each to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, text), (path.with_suffix(".json"), json.dumps(figures, indent=2) + "\n")):
        beside = target.with_name(f".{target.name}.writing")
        beside.write_text(content, encoding="utf-8")
        beside.replace(target)
