"""Ablations on one page."""

import html
from collections.abc import Sequence
from pathlib import Path

from moe_llava.routing.ablation import MODES, Ablation
from moe_llava.routing.compare import ALL
from moe_llava.routing.page import Bar, intervals_figure, nats, page, picture, points, splits_table, table

_TITLES = {
    "zero": "An expert gives nothing",
    "mean": "An expert is the mean of its layer's experts",
    "next": "An expert's tokens go to the next best",
    "router": "A layer's experts are drawn at random",
}


def ablation_page(ablations: Sequence[Ablation], *, model: str, data: str, n: int, maps: Sequence[Path] = ()) -> str:
    """The whole page; `maps` are pictures (PNG) that it takes in."""
    body = [
        "<h1>What happens without an expert</h1>",
        f"<p class=note><code>{html.escape(model)}</code> on {n:,} answers of <code>{html.escape(data)}</code>. "
        "Changes in nats an answer and in percentage points, with 95 % bootstrap intervals over whole images, each for "
        "itself. "
        "<i>Random</i>: the same done to as many of the layer's assignments, drawn at random; <i>beyond</i>: the "
        "expert's change minus that. An expert that no token chooses changes exactly 0.</p>",
    ]
    for mode in MODES:
        if members := [one for one in ablations if one.mode == mode]:
            body += [f"<h2>{_TITLES[mode]}</h2>", _figure(members), _table(members), _splits(members)]
    if maps:
        body.append("<h2>What single answers owe to which expert, patch by patch</h2>")
        body += [picture(path) for path in maps]
    return page("What happens without an expert", "\n".join(body))


def _figure(members: Sequence[Ablation]) -> str:
    bars = []
    for one in members:
        bars.append(Bar(one.name, one.difference[ALL].log_probability))
        if one.control:
            name = f"random, {100 * one.load:.0f} % of the layer"
            bars.append(Bar(name, one.control[ALL].log_probability, control=True))
    return intervals_figure(bars, "change of log-probability, nats an answer (left: worse without)")


def _table(members: Sequence[Ablation]) -> str:
    head = ["without", "load", "nats", "points"]
    controlled = all(one.control and one.beyond for one in members)
    head += ["random, nats", "random, points", "beyond, nats", "beyond, points"] if controlled else []
    rows = []
    for one in members:
        cells = [html.escape(one.name), f"{100 * one.load:.1f} %"]
        for differences in (one.difference, one.control, one.beyond):
            if differences:
                cells += [nats(differences[ALL].log_probability), points(differences[ALL].accuracy)]
        rows.append(cells)
    return table(head, rows, numbers=set(range(1, len(head))), caption="Bold: the interval excludes 0.")


def _splits(members: Sequence[Ablation]) -> str:
    if len(members[0].difference) == 1:
        return ""
    return "<h3>By modality and question type</h3>" + splits_table({one.name: one.difference for one in members})
