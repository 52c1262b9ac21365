"""Recordings of the original's models, each converted once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.checkpoint.recordings import FAMILIES, Recording


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
