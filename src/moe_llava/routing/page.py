"""Plain parts of a self-contained page: no network, no script, readable in print."""

import html
import json
from pathlib import Path
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.answer { font-size: 1.15rem; border-left: .3rem solid #0072b2; padding: .4rem 1rem; background: #f2f7fb }
.note { color: #555; font-size: .9rem }
table { border-collapse: collapse; width: 100%; font-size: .92rem } caption { text-align: left; color: #555 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } td.number { white-space: nowrap }
.verdict { font-weight: 600; white-space: nowrap } .effect { color: #b34700 } .quiet { color: #00664a }
svg { display: block } svg text { font: 12px system-ui, sans-serif; fill: #333 }
@media print { body { max-width: none; margin: 0 } h2, tr, svg { break-inside: avoid } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n<body>{body}</body></html>\n"
    )


def table(head: list[str], rows: list[list[str]], *, numbers: set[int] = frozenset(), caption: str = "") -> str:  # type: ignore[assignment]
    """Rows of ready HTML; the columns in `numbers` are set right."""

    def cells(row: list[str], tag: str) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(row)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def intervals_figure(rows: list[tuple[str, float, float, float]], unit: str) -> str:
    """Means and intervals under each other on one axis with its zero: `(name, mean, low, high)`."""
    left, width, step = 360, 520, 28
    low, high = min(0.0, *(row[2] for row in rows)), max(0.0, *(row[3] for row in rows))
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room

    def x(value: float) -> float:
        return round(left + width * (value - low) / (high - low), 1)

    height = step * len(rows) + 44
    parts = [
        f'<svg viewBox="0 0 {left + width + 20} {height}" role="img" aria-label="{html.escape(unit)}">',
        f'<line x1="{x(0)}" x2="{x(0)}" y1="4" y2="{height - 38}" stroke="#888" stroke-dasharray="3 3"/>',
    ]
    for number, (name, mean, start, end) in enumerate(rows):
        y = 18 + number * step
        colour = "#b34700" if start > 0 or end < 0 else "#0072b2"
        parts += [
            f'<text x="{left - 12}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>',
            f'<line x1="{x(start)}" x2="{x(end)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x(mean)}" cy="{y}" r="5" fill="{colour}"/>',
        ]
    for value in {low + room, 0.0, high - room}:
        if value == 0.0 or abs(x(value) - x(0)) > 40:
            parts.append(f'<text x="{x(value)}" y="{height - 24}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{height - 6}" text-anchor="middle">{html.escape(unit)}</text></svg>')
    return "".join(parts)


def write_page(path: Path, text: str, figures: dict[str, Any]) -> None:
    """Write the page, and the same figures as JSON beside it; each to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, text), (path.with_suffix(".json"), json.dumps(figures, indent=2) + "\n")):
        beside = target.with_name(f".{target.name}.writing")
        beside.write_text(content, encoding="utf-8")
        beside.replace(target)
