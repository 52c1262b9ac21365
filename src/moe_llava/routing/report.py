"""A trace -> one HTML file that needs nothing else, and its figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.generate.engine import ImageSource
from moe_llava.routing import figures
from moe_llava.routing.examples import Example, patches_of, read_examples
from moe_llava.routing.findings import findings, layer_names, percent
from moe_llava.routing.paths import PathTable, travelled
from moe_llava.routing.routes import RouteFile
from moe_llava.routing.statistics import MODALITIES, RouteStatistics, gather

TEMPLATE = "report.html.j2"
CAPTIONS = {
    "load": (
        "Load",
        "How the choices of each sparse layer are shared among its experts. A token chooses as many experts as the "
        "model's top-k, so a layer's shares add up to 100 %; in an even layer every cell is the same.",
    ),
    "modality": (
        "Modality",
        "Left: of what chose an expert, how much would be image patches if there were as much text as image; 50 % is "
        "no preference. Right: mutual information of the first expert and the modality. The axis ends where the "
        "expert would tell the modality for certain; the dotted line is what chance alone would show.",
    ),
    "decisiveness": (
        "Decisiveness and balance",
        "Entropy of the router's distribution as a share of the largest possible (1: undecided) and the margin "
        "between its two largest probabilities: mean over tokens, shaded from the 10th to the 90th percentile. MaxVio "
        "is by how much the largest load exceeds an even one (0: even).",
    ),
    "paths": (
        "Paths",
        "The paths of first choices that most tokens took through the sparse layers, counted one by one. The wider the "
        "line, the larger its share.",
    ),
    "transitions": (
        "Transitions",
        "Of the tokens whose first choice in one sparse layer is the row's expert: which expert is first in the next.",
    ),
}


def write_report(
    file: RouteFile,
    out: Path,
    processor: MoeLlavaProcessor,
    images: Mapping[str, Sequence[ImageSource]],
    figures_folder: Path | None = None,
) -> dict[str, Any]:
    """Draw the report of a trace; return its figures as numbers, with sentences in `findings`.

    Args:
        out: the HTML file.
        processor: the model's, which shows pictures as the model sees them.
        images: samples to show one by one: the pictures of each by its id.
        figures_folder: where to put the figures as PNG and SVG, if anywhere.

    Raises:
        ValueError: the trace is empty, a picture cannot be read, or matplotlib is not installed.
    """
    if not file.rows:
        raise ValueError("Nothing was traced: let the model read or answer something inside the trace.")
    statistics = gather(file)
    paths = [travelled(file, kind) for kind in statistics.present()]
    drawn = figures.draw(statistics, paths)
    if figures_folder:
        figures.save(drawn, figures_folder)
    examples = read_examples(file, processor, images)
    sentences = findings(statistics, paths)
    sets = [travelled(file, kind, choices=file.info.top_k) for kind in statistics.present()]
    page = _render(
        info=file.info,
        findings=sentences,
        statistics=statistics,
        figures=[(*CAPTIONS[name], figures.inline_svg(name, drawing, name)) for name, drawing in drawn.items()],
        layers=_layer_rows(statistics),
        paths=[_path_rows(table, examples, file.info.grid) for table in paths],
        sets=[_path_rows(table, [], None) for table in sets] if file.info.top_k > 1 else [],
        data=_script_data(file, examples),
        examples=examples,
        colours=figures.EXPERT_COLOURS,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".writing")
    beside.write_text(page, encoding="utf-8")
    beside.replace(out)
    return statistics.summary() | {"findings": sentences}


def _render(**values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "layer_names": layer_names}
    return environment.get_template(TEMPLATE).render(**values)


def _layer_rows(statistics: RouteStatistics) -> list[dict[str, Any]]:
    """The figures of each layer, for a table."""
    information = statistics.information()
    return [
        {
            "layer": layer,
            "load": statistics.load()[place].max(),
            "violation": statistics.max_violation()[place],
            "information": information[place],
            "spread": [
                (statistics.mean_entropy(kind)[place], statistics.mean_margin(kind)[place])
                for kind in statistics.present()
            ],
        }
        for place, layer in enumerate(statistics.info.layers)
    ]


def _path_rows(table: PathTable, examples: Sequence[Example], grid: tuple[int, int] | None) -> dict[str, Any]:
    is_image = table.kind == MODALITIES.index("image")
    patches = patches_of(examples, table, grid) if is_image else [[] for _ in table.paths]
    return {
        "title": ("Text tokens", "Image patches")[table.kind],
        "is_image": is_image,
        "distinct": table.distinct,
        "rows": [row for row in zip(table.paths, patches, strict=True) if row[0].tokens > 1],
    }


def _script_data(file: RouteFile, examples: Sequence[Example]) -> str:
    """What the page's script reads, safe inside a script element."""
    info = file.info
    data = {
        "layers": info.layers,
        "numExperts": info.num_experts,
        "topK": info.top_k,
        "grid": info.grid,
        "colours": figures.EXPERT_COLOURS,
        "examples": [example.for_page(info.num_experts) for example in examples],
    }
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
