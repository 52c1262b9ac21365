"""Files of routes whose content is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_llava.routing.recorder import Choices
from moe_llava.routing.routes import RouteFile, RouteInfo, RouteWriter, TokenRows


def write_routes(
    path: Path,
    experts: np.ndarray,
    is_image: np.ndarray,
    *,
    num_experts: int,
    sample: np.ndarray | None = None,
    texts: Sequence[str] | None = None,
    grid: tuple[int, int] | None = (2, 2),
) -> RouteFile:
    """`experts` is `(token, layer, k)`; weights are even, image patches run through the grid."""
    count, layers, top_k = experts.shape
    patch = np.cumsum(is_image) - 1
    rows, columns = grid or (1, 1)
    info = RouteInfo("made", tuple(range(0, 2 * layers, 2)), num_experts, top_k, grid)
    place = np.where(is_image, patch, -1)
    spread = np.full((count, layers), 0.5, dtype=np.float32)
    token_rows = TokenRows(
        sample=np.zeros(count, dtype=np.int64) if sample is None else sample,
        position=np.arange(count),
        part=np.zeros(count, dtype=np.int64),
        token_id=np.arange(count),
        image=np.where(is_image, 0, -1),
        patch_row=np.where(is_image, place // columns % rows, -1),
        patch_column=np.where(is_image, place % columns, -1),
    )
    choices = Choices(experts.astype(np.int16), np.full(experts.shape, 1 / top_k, dtype=np.float32), spread, spread)
    writer = RouteWriter(path, info)
    names = [f"s{number}" for number in token_rows.sample]
    writer.write(
        token_rows, choices, names, list(texts) if texts else ["<image>" if one else "word" for one in is_image]
    )
    writer.close()
    return RouteFile(path)
