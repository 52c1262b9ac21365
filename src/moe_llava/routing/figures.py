"""The figures of a routing report, drawn once and kept as PNG, as SVG and as SVG that takes the page's colours."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moe_llava.routing.findings import percent
from moe_llava.routing.paths import PathTable
from moe_llava.routing.statistics import MODALITIES, RouteStatistics, quantile

# Okabe and Ito's colours (2008), told apart with any colour vision.
EXPERT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
MODALITY_STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"))
INK = "#1a1a1b"
FEW = 16
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def matplotlib() -> ModuleType:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib as library
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("The figures need matplotlib: pip install 'moe-llava[routing]'.") from error
    return library


def draw(statistics: RouteStatistics, paths: Sequence[PathTable]) -> dict[str, Any]:
    """Every figure for which there is something to show, by its file's name."""
    drawers: dict[str, Callable[[], Any]] = {
        "load": lambda: load(statistics),
        "decisiveness": lambda: spread(statistics),
    }
    if len(statistics.present()) == len(MODALITIES):
        drawers["modality"] = lambda: modality(statistics)
    shared = [table for table in paths if table.paths[0].tokens > 1]
    if len(statistics.info.layers) > 1:
        if shared:
            drawers["paths"] = lambda: travelled_paths(statistics, shared)
        drawers["transitions"] = lambda: transitions(statistics)
    with matplotlib().rc_context(_STYLE):
        return {name: drawer() for name, drawer in drawers.items()}


def save(figures: dict[str, Any], folder: Path) -> None:
    """Write each figure as PNG (on white, 200 dpi) and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        for kind, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
            with matplotlib().rc_context({**_STYLE, "svg.hashsalt": name}):
                beside = folder / f"{name}.writing.{kind}"
                figure.savefig(beside, facecolor="white", **options)
                beside.replace(folder / f"{name}.{kind}")


def inline_svg(name: str, figure: Any, label: str) -> str:
    """A figure for a page: transparent, in the page's text colour and as wide as there is room."""
    text = io.StringIO()
    with matplotlib().rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    assert width is not None
    points = float(width[1])
    size = (
        f'style="min-width:{min(points, 560):.0f}px;max-width:{points * 4 / 3:.0f}px" role="img" aria-label="{label}"'
    )
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" {size}>', svg, count=1)


def load(statistics: RouteStatistics) -> Any:
    """Each expert's share of a layer's choices: by all tokens, and by each modality."""
    kinds: list[int | None] = [None, *statistics.present()]
    kinds = kinds if len(kinds) > 2 else kinds[:1]
    titles = ["all tokens" if kind is None else _plural(kind) for kind in kinds]
    maps = [statistics.load(kind) for kind in kinds]
    top = max(2 / statistics.info.num_experts, max(values.max() for values in maps))
    figure, axes = _grid(statistics, len(kinds))
    for axis, values, title in zip(axes, maps, titles, strict=True):
        image = _heatmap(axis, values, statistics, title, "cividis", 0, top, in_percent=True)
    _colourbar(figure, image, list(axes), "share of choices")
    return figure


def modality(statistics: RouteStatistics) -> Any:
    """Which modality an expert is for, and what its number tells of the modality, layer by layer."""
    figure, (left, right) = _grid(statistics, 2, extra=1.2)
    image = _heatmap(
        left, statistics.image_share(), statistics, "preference for images", _text_to_image(), 0, 1, in_percent=True
    )
    _colourbar(figure, image, [left], "share of images")
    layers = np.arange(len(statistics.info.layers))
    information, most = statistics.information(), statistics.modality_entropy()
    right.barh(layers, information, color=EXPERT_COLOURS[0], height=0.7)
    right.axvline(statistics.information_by_chance(), color=INK, linewidth=0.8, linestyle=":")
    right.set_xlim(0, max(most, 1e-3))
    right.set_xlabel(f"bits, of {most:.2f}")
    right.set_title("what the first expert tells\nof the modality", fontsize=9)
    _layer_axis(right, statistics)
    return figure


def spread(statistics: RouteStatistics) -> Any:
    """Entropy and margin of the routers with the middle 80 % of tokens, and MaxVio."""
    figure, axes = _figure(1, 3, (9.5, 2.9))
    layers = np.array(statistics.info.layers)
    for kind in statistics.present():
        colour, marker, line = MODALITY_STYLES[kind]
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": _plural(kind)}
        histograms = (statistics.entropy[kind], statistics.margin[kind])
        means = (statistics.mean_entropy(kind), statistics.mean_margin(kind))
        for axis, histogram, mean in zip(axes[:2], histograms, means, strict=True):
            axis.fill_between(layers, quantile(histogram, 0.1), quantile(histogram, 0.9), color=colour, alpha=0.15)
            axis.plot(layers, mean, **style)
        axes[2].plot(layers, statistics.max_violation(kind), **style)
    for axis, title in zip(axes, ("entropy / log E", "margin of first two", "MaxVio of the load"), strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("layer")
        axis.set_xticks(_some(layers, 8))
        axis.margins(x=0.08)
    for axis in axes[:2]:
        axis.set_ylim(0, 1.02)
    axes[2].set_ylim(0, max(0.5, axes[2].get_ylim()[1]))
    axes[0].legend(frameon=False, loc="lower left")
    return figure


def travelled_paths(statistics: RouteStatistics, tables: Sequence[PathTable]) -> Any:
    """The most-travelled paths of first choices, one line each, as wide as its share of tokens."""
    layers, experts = len(statistics.info.layers), statistics.info.num_experts
    figure, axes = _figure(1, len(tables), (min(4.5 + 0.25 * layers, 8) * len(tables) / 1.4, 3.8))
    for axis, table in zip(axes, tables, strict=True):
        shown = [path for path in table.paths if path.tokens > 1][: len(EXPERT_COLOURS) - 1]
        for number, path in reversed(list(enumerate(shown))):
            offset = (number - (len(shown) - 1) / 2) * 0.08 * min(experts / 4, 4)
            height = [step[0] + offset for step in path.experts]
            width = 1 + 12 * path.token_share**0.5
            name = "→".join(str(step[0]) for step in path.experts) + "  " if layers <= 4 else ""
            style = {"color": EXPERT_COLOURS[number], "label": f"{name}{percent(path.token_share)}", "alpha": 0.85}
            axis.plot(range(layers), height, linewidth=width, solid_capstyle="round", solid_joinstyle="round", **style)
        covered = sum(path.token_share for path in shown)
        axis.set_title(
            f"{_plural(table.kind)}: {len(shown)} of {table.distinct:,} paths, {percent(covered)} of tokens", fontsize=9
        )
        axis.set_xticks(*_ticks(statistics.info.layers, 10))
        axis.set_xlabel("layer")
        axis.set_ylim(experts - 0.4, -0.6)
        axis.set_yticks(_some(np.arange(experts), 9))
        axis.margins(x=0.06)
        handles, labels = axis.get_legend_handles_labels()
        axis.legend(handles[::-1], labels[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    axes[0].set_ylabel("expert of the first choice")
    return figure


def transitions(statistics: RouteStatistics) -> Any:
    """Where the first choices of one sparse layer go in the next."""
    counts = statistics.transitions.sum(axis=0)
    shown = _some(np.arange(len(counts)), 12)
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure, axes = _figure(rows, columns, (2.1 * columns + 1.2, 2.2 * rows + 0.3))
    layers, few = statistics.info.layers, statistics.info.num_experts <= 8
    maps = counts[shown] / np.maximum(counts[shown].sum(axis=2, keepdims=True), 1)
    top = 1.0 if few else float(np.quantile(maps, 0.999))  # among many experts, one that little led to shows nothing
    for axis, pair, shares in zip(axes, shown, maps, strict=False):
        image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=top, interpolation="none")
        axis.set_title(f"layer {layers[pair]} → {layers[pair + 1]}", fontsize=9)
        axis.set_xticks(_some(np.arange(len(shares)), 5))
        axis.set_yticks(_some(np.arange(len(shares)), 5))
        axis.tick_params(length=0, labelsize=7)
        if few:
            _write_shares(axis, shares, 0, top, in_percent=True, size=7)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    axes[0].set_ylabel("expert before")
    axes[0].set_xlabel("expert after")
    _colourbar(figure, image, list(axes), "share of the row")
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, np.ndarray]:
    figure = matplotlib().figure.Figure(figsize=size, layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)


def _grid(statistics: RouteStatistics, panels: int, extra: float = 0.0) -> tuple[Any, np.ndarray]:
    """Panels of layers times experts: side by side where experts are few, else one above the other."""
    layers, experts = len(statistics.info.layers), statistics.info.num_experts
    if experts <= FEW:
        width = 1.0 + 0.42 * max(experts, 4) + extra
        return _figure(1, panels, (width * panels + 0.8, 0.9 + 0.26 * max(layers, 3)))
    return _figure(panels, 1, (9.5, (0.9 + 0.13 * max(layers, 6)) * panels))


def _heatmap(
    axis: Any,
    values: np.ndarray,
    statistics: RouteStatistics,
    title: str,
    colours: Any,
    low: float,
    high: float,
    in_percent: bool = False,
) -> Any:
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("expert")
    axis.set_xticks(_some(np.arange(values.shape[1]), 17))
    axis.tick_params(length=0)
    _layer_axis(axis, statistics)
    if values.shape[1] <= 8:
        _write_shares(axis, values, low, high, in_percent)
    return image


def _write_shares(axis: Any, values: np.ndarray, low: float, high: float, in_percent: bool, size: int = 8) -> None:
    """Numbers into cells, dark on light and light on dark."""
    colours = axis.images[0].cmap
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = colours((value - low) / max(high - low, 1e-12))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{100 * value:.0f}" if in_percent else f"{value:.2f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")


def _layer_axis(axis: Any, statistics: RouteStatistics) -> None:
    layers = statistics.info.layers
    axis.set_yticks(*_ticks(layers, 24))
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_ylabel("layer")


def _text_to_image() -> Any:
    """From the colour of text to that of images, white between."""
    colours = [MODALITY_STYLES[0][0], "#F7F7F7", MODALITY_STYLES[1][0]]
    return matplotlib().colors.LinearSegmentedColormap.from_list("text-to-image", colours)


def _colourbar(figure: Any, image: Any, axes: list[Any], label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(matplotlib().ticker.PercentFormatter(1, decimals=0))
    bar.set_label(label, fontsize=8)


def _ticks(labels: Sequence[int], most: int) -> tuple[np.ndarray, list[str]]:
    places = _some(np.arange(len(labels)), most)
    return places, [str(labels[place]) for place in places]


def _some(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced from the first."""
    return values[:: max(1, -(-len(values) // most))]


def _plural(kind: int) -> str:
    return ("text tokens", "image patches")[kind]
