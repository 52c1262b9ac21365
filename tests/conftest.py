"""Shapes and types of every public function are checked while the tests run; models are tiny and random."""

import os
import signal
from pathlib import Path

from jaxtyping import install_import_hook

# Before the first import of the hub's client, which reads it then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SOURCE = Path(__file__).parents[1] / "src" / "moe_llava"
# But for two dataclasses of transformers': it passes the first more than its fields, and annotates the second wrongly.
CHECKED = [
    "moe_llava." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "config.py", "output.py")
]

with install_import_hook(CHECKED, "beartype.beartype"):
    import moe_llava  # noqa: F401

import pytest
import torch

from tests.tiny import Tiny

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Run in the background: what the tests start must hear Ctrl-C all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = ("test_readme.py", "test_layouts.py", "test_gradients.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Recordings made by the original's code; tests that read them skip where they are absent."""
    folder = Path(os.environ.get("MOE_LLAVA_FIXTURES", Path(__file__).parents[1] / "../shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}; set MOE_LLAVA_FIXTURES to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Parts, pictures and conversations for tests that train or answer."""
    return Tiny(tmp_path_factory.mktemp("tiny"))
