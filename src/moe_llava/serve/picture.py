"""Experts as pictures for the page: an overlay on what the model saw, and tables of loads. HTML and SVG, no script."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.serve.routes import ImageRoutes

# Okabe and Ito's, told apart with any colour vision; every patch also bears its expert's number.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
SIDE = 480


def colour(expert: int) -> str:
    return PALETTE[expert % len(PALETTE)]


def as_seen(processor: MoeLlavaProcessor, image: Image.Image) -> Image.Image:
    """What the image processor makes of a picture: resized, cut, and its normalisation undone."""
    pixels = np.asarray(processor.image_processor([image], return_tensors="np")["pixel_values"][0], dtype=np.float32)
    mean, deviation = (getattr(processor.image_processor, name, None) for name in ("image_mean", "image_std"))
    if mean is not None and deviation is not None:
        pixels = pixels * np.reshape(deviation, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def overlay(seen: Image.Image, routes: ImageRoutes, layer: int) -> str:
    """A picture with a tinted, numbered cell for each patch: the expert with most weight in the `layer`-th router."""
    if routes.rows is None or routes.columns is None:
        return "<p>The patches of this model fill no grid, so they cannot be shown on the picture.</p>"
    width, height = SIDE / routes.columns, SIDE / routes.rows
    size = min(width, height) * 0.32
    cells = []
    for patch, layers in enumerate(routes.experts):
        row, column = divmod(patch, routes.columns)
        expert, x, y = layers[layer][0], column * width, row * height
        cells.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour(expert)}" '
            f'stroke="#fff" stroke-opacity="0.6"/>'
            f'<text x="{x + width / 2:.1f}" y="{y + height / 2 + size / 3:.1f}" font-size="{size:.1f}" fill="#fff" '
            f'stroke="#000" stroke-width="{size / 7:.1f}" paint-order="stroke" text-anchor="middle">{expert}</text>'
        )
    counts = Counter(layers[layer][0] for layers in routes.experts)
    told = ", ".join(f"expert {expert}: {count}" for expert, count in sorted(counts.items()))
    return (
        f'<svg class="overlay" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="Patches by expert. {told}">'
        f'<image href="{_data_uri(seen)}" width="{SIDE}" height="{SIDE}" preserveAspectRatio="none"/>'
        f"{''.join(cells)}</svg>"
    )


def legend(num_experts: int) -> str:
    marks = "".join(
        f'<span class="mark"><i style="background:{colour(expert)}">{expert}</i> expert {expert}</span>'
        for expert in range(num_experts)
    )
    return f'<div class="legend">{marks}</div>'


def loads(title: str, experts: Sequence[Sequence[Sequence[int]]], layers: Sequence[int], num_experts: int) -> str:
    """For each layer a bar, cut by the share of choices that each expert got; `experts[token][layer]`."""
    rows = []
    for at, layer in enumerate(layers):
        counts = Counter(expert for token in experts for expert in token[at])
        total = max(1, sum(counts.values()))
        shares = [(expert, counts[expert] / total) for expert in range(num_experts) if counts[expert]]
        parts = "".join(
            f'<i style="width:{share:.1%};background:{colour(expert)}" title="expert {expert}: {share:.0%}">'
            f"{expert if share >= 0.05 else ''}<small>{f' {share:.0%}' if share >= 0.15 else ''}</small></i>"
            for expert, share in shares
        )
        rows.append(f'<div class="load"><b>layer {layer}</b><span>{parts}</span></div>')
    return f"<h4>{escape(title)}</h4>{''.join(rows)}" if experts else ""


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


CSS = """
.overlay { width: 100%; max-width: 480px; height: auto; display: block; border-radius: 6px; margin-bottom: 10px; }
.overlay rect { fill-opacity: 0.4; transition: fill-opacity 0.2s; }
.overlay:hover rect { fill-opacity: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 6px 0; font-size: 0.9rem; }
.mark i, .load i, .load small { font-style: normal; color: #000 !important; text-align: center; }
.mark i { display: inline-block; width: 1.5em; border-radius: 3px; }
.load { display: flex; align-items: center; gap: 8px; margin: 3px 0; font-size: 0.85rem; }
.load b { width: 4.5em; flex: none; font-weight: 500; }
.load span { display: flex; flex: 1; height: 1.7em; border-radius: 4px; overflow: hidden; }
.load i { line-height: 1.7em; min-width: 1px; overflow: hidden; white-space: nowrap; border-right: 1px solid #fff; }
"""
