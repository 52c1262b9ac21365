"""A name -> a folder of ours: as it is, or converted once into the cache if it is what was published."""

import hashlib
import logging
import os
import shutil
from pathlib import Path

from transformers import CONFIG_MAPPING, PreTrainedConfig

from moe_llava.checkpoint.hub import fetch
from moe_llava.checkpoint.original import convert
from moe_llava.checkpoint.original.layout import judge
from moe_llava.checkpoint.tables import read_table
from moe_llava.model.config import MoeLlavaConfig

# Raised when a conversion gives something else than before, so that nobody keeps an old one in the cache.
_CONVERSION = 2
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$MOE_LLAVA_CACHE`, or `~/.cache/moe-llava`."""
    return Path(os.environ.get("MOE_LLAVA_CACHE") or "~/.cache/moe-llava").expanduser()


def local_checkpoint(name: str | Path) -> Path:
    """Folder of a checkpoint of this library, by a folder's path or a hub id.

    What MoE-LLaVA and LLaVA-1.5 published is converted the first time, into the cache, and found there later.

    Raises:
        ValueError: no such checkpoint; or off line, and the sentence says what to fetch.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not _is_hub_id(str(name)):
            raise ValueError(f"{name} is not a checkpoint: there is no such folder, and it is no hub id.")
        folder = fetch(str(name))
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json. Give the folder of a finished stage.")
    if _model_type(folder) == MoeLlavaConfig.model_type:
        return folder
    return _converted(folder, str(name))


def published_config(name: str | Path) -> MoeLlavaConfig | None:
    """The configuration that a published checkpoint converts to, from its config.json alone; `None` for anything else.

    Raises:
        ValueError: a LLaVA that does not convert.
        OSError: it, or the tower that it names, has no config.json that can be reached.
    """
    raw, _ = PreTrainedConfig.get_config_dict(name)
    kind = str(raw.get("model_type"))
    if "llava" not in kind or (kind in CONFIG_MAPPING and kind != "llava"):
        return None
    layout = judge(raw, Path(name) / "config.json")
    return layout.config(layout.tower_config(None))


def _is_hub_id(name: str) -> bool:
    owner, slash, model = name.partition("/")
    return bool(slash and owner and model) and "/" not in model and not owner.startswith((".", "~"))


def _model_type(folder: Path) -> str:
    return str(read_table(folder / "config.json").get("model_type"))


def _converted(folder: Path, name: str) -> Path:
    """The conversion of a folder. A process of its own writes it beside, then renames it."""
    label = name if _is_hub_id(name) else folder.resolve().name
    final = cache_folder() / "converted" / f"{label.replace('/', '--')}-{_fingerprint(folder)}"
    if not final.is_dir():
        beside = final.with_name(f".{final.name}-{os.getpid()}")
        shutil.rmtree(beside, ignore_errors=True)
        # At the level that is seen without being asked for: a full-size model takes minutes.
        _log.warning("Converting %s, once, into %s", name, final)
        convert(folder, beside)
        try:
            beside.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(beside)  # another process was first
    return final


def _fingerprint(folder: Path) -> str:
    """Changes when a file of the folder does, or what a conversion makes of it."""
    parts = [f"conversion {_CONVERSION}", str(folder.resolve())]
    for path in sorted(folder.iterdir()):
        if path.is_file():
            status = path.stat()
            parts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
