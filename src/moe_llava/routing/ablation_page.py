"""Ablations on one page."""

import html
from collections.abc import Sequence

from moe_llava.routing.ablation import MODES, Ablation
from moe_llava.routing.compare import ALL, Difference
from moe_llava.routing.page import intervals_figure, page, table

_TITLES = {
    "zero": "An expert gives nothing",
    "mean": "An expert is the mean of its layer's experts",
    "next": "An expert's tokens go to the next best",
    "router": "A layer's experts are drawn at random",
}


def ablation_page(ablations: Sequence[Ablation], *, model: str, data: str, n: int, maps: Sequence[str] = ()) -> str:
    """The whole page; `maps` are names of pictures beside it."""
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
        body += [f'<p><img src="{html.escape(name)}" style="max-width:100%" alt=""></p>' for name in maps]
    return page("What happens without an expert", "\n".join(body))


def _figure(members: Sequence[Ablation]) -> str:
    rows = []
    for one in members:
        nats = one.difference[ALL].log_probability
        rows.append((one.name, nats.mean, nats.low, nats.high))
        if one.control:
            chance = one.control[ALL].log_probability
            rows.append((f"random, {100 * one.load:.0f} % of the layer", chance.mean, chance.low, chance.high))
    return intervals_figure(rows, "change of log-probability, nats an answer (left: worse without)")


def _table(members: Sequence[Ablation]) -> str:
    head = ["without", "load", "nats", "points", "random, nats", "beyond, nats", "beyond, points"]
    rows = []
    for one in members:
        cells = [
            html.escape(one.name),
            f"{100 * one.load:.1f} %",
            _nats(one.difference[ALL]),
            _points(one.difference[ALL]),
        ]
        cells += [_nats(one.control[ALL])] if one.control else [""]
        cells += [_nats(one.beyond[ALL]), _points(one.beyond[ALL])] if one.beyond else ["", ""]
        rows.append(cells)
    return table(head, rows, numbers=set(range(1, 7)), caption="Bold: the interval excludes 0.")


def _splits(members: Sequence[Ablation]) -> str:
    names = [name for name in members[0].difference if name != ALL]
    if not names:
        return ""
    rows = [[html.escape(one.name), *(_nats(one.difference[name]) for name in names)] for one in members]
    head = ["nats, by modality and type", *map(html.escape, names)]
    return "<br>" + table(head, rows, numbers=set(range(1, len(head))))


def _nats(one: Difference) -> str:
    text = "0" if one.log_probability.all_zero else f"{one.log_probability.mean:+.4f}"
    return f"<b>{text}</b>" if one.log_probability.excludes_zero else text


def _points(one: Difference) -> str:
    if one.accuracy is None:
        return ""
    text = "0" if one.accuracy.all_zero else f"{100 * one.accuracy.mean:+.2f}"
    return f"<b>{text}</b>" if one.accuracy.excludes_zero else text
