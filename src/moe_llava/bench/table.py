"""The report for people."""

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table


def tables(report: dict[str, Any]) -> Iterator[RenderableType]:
    """One table a part."""
    machine = report["machine"]
    rates = [f"{name} {rate['median'] / 1e9:.0f} GFLOP/s" for name, rate in machine["matmul_per_second"].items()]
    yield (
        f"{machine['processor']}, {machine['threads']} of {machine['cpus']} cores, {machine['memory_gib']} GiB, "
        f"{machine['device']}; torch {machine['packages']['torch']}; {', '.join(rates)}; "
        f"reads {machine['read_per_second']['median'] / 1e9:.1f} GB/s"
    )
    makers: dict[str, Callable[[Any], Iterator[RenderableType]]] = {
        "block": _block,
        "answer": _answer,
        "train": _train,
        "growth": _growth,
        "loading": _loading,
    }
    for part, make in makers.items():
        if part in report:
            yield from make(report[part])


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _ratio(spread: dict[str, float] | None) -> str:
    if spread is None:
        return ""
    digits = 2 if spread["median"] < 10 else 1
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f}-{spread['high']:.{digits}f})"


def _milliseconds(spread: dict[str, float]) -> str:
    return f"{1e3 * spread['median']:.1f}"


def _block(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    found = dict.fromkeys(name for row in rows for name in row["runs"])
    names = [name for name in found if name not in ("floor", "reading")]
    title = "block: times the floor, median (quartiles) of the ratio in a round"
    table = _table(title, ["", "tokens", "floor, ms", *names, "ours / reading", "packed / reading"])
    for row in rows:
        runs = row["runs"]
        table.add_row(
            f"{row['dtype']}, {row['direction']}",
            str(row["tokens"]),
            f"{1e3 * runs['floor']['seconds']['median'] / row['layers']:.2f}",
            *(_ratio(runs.get(name, {}).get("ratio")) for name in names),
            *(_ratio(runs.get(name, {}).get("ratio_to_reading")) for name in ("ours", "packed")),
        )
    yield table


def _answer(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    columns = ["model", "first token, s", "of limit", "tokens/s", "of limit", "weights, GB", "peak, GB"]
    table = _table(f"answer: prompts of {rows[0]['prompt_tokens']} tokens, random weights", columns)
    for row in rows:
        table.add_row(
            row["model"],
            _ratio(row["first_token_seconds"]),
            f"{100 * row['first_token_share_of_limit']['median']:.0f} %",
            f"{row['tokens_per_second']:.2f}",
            f"{100 * row['token_share_of_limit']['median']:.0f} %",
            f"{row['weight_bytes'] / 1e9:.2f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        )
    yield table


def _train(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    names = list(rows[0]["runs"])
    table = _table("train: one step, tokens a second (times ours), peak GB", ["", "tokens", *names])
    for row in rows:
        cells = [
            f"{run['tokens_per_second']:.0f} ({run['ratio_to_ours']['median']:.2f}), {run['peak_bytes'] / 1e9:.2f}"
            for run in row["runs"].values()
        ]
        table.add_row(row["dtype"], f"{row['rows']} x {row['length']}", *cells)
    yield table


def _growth(tables: dict[str, list[dict[str, Any]]]) -> Iterator[RenderableType]:
    for axis, rows in tables.items():
        table = _table(f"growth with {axis}", [axis, "ms", "times the floor"])
        for row in rows:
            table.add_row(str(row["value"]), _milliseconds(row["seconds"]), _ratio(row.get("ratio_to_floor")))
        yield table


def _loading(rows: list[dict[str, Any]]) -> Iterator[RenderableType]:
    table = _table("loading", ["checkpoint", "GB", "reading, s", "opening, times reading", "peak over model"])
    for row in rows:
        runs = row["runs"]
        table.add_row(
            row["checkpoint"],
            f"{row['weight_bytes'] / 1e9:.2f}",
            f"{runs['reading']['seconds']['median']:.2f}",
            _ratio(runs["opening"]["ratio"]),
            f"{row['peak_over_model']:.2f}",
        )
    yield table
