"""Recordings of the original's models, each converted once; and folders as the original publishes them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_llava.model import MoeLlavaForConditionalGeneration
from tests.checkpoint.published import original_config, original_names, write_original, write_tower
from tests.checkpoint.recordings import FAMILIES, Recording
from tests.tiny import tiny_sparse


@pytest.fixture(scope="session")
def recording(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recording]:
    """`recording("phi")` -> that family's recording."""
    folder = tmp_path_factory.mktemp("converted")

    @cache
    def open_family(family: str) -> Recording:
        return Recording.open(fixtures / "golden" / family / "a", folder / family)

    return open_family


@pytest.fixture(params=FAMILIES)
def recorded(request: pytest.FixtureRequest, recording: Callable[[str], Recording]) -> Recording:
    """Each family in turn."""
    return recording(request.param)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    write_tower(folder)
    return folder


@pytest.fixture
def stage3(tmp_path: Path, tower: Path) -> Callable[..., tuple[Path, MoeLlavaForConditionalGeneration]]:
    """`stage3("phi")` -> a folder in the original's layout, and the model whose weights it holds."""

    def make(family: str = "llama", edit: Callable[[dict], Any] | None = None, **config: Any) -> tuple[Path, Any]:
        model = tiny_sparse(family)
        if model.lm_head.bias is not None:
            torch.nn.init.zeros_(model.lm_head.bias)
        tensors = original_names(model)
        if edit:
            edit(tensors)
        folder = tmp_path / f"stage3-{family}"
        return write_original(folder, tensors, original_config(model, str(tower), **config)), model

    return make
