"""The tensors of a folder, one at a time: never more in memory than what is being read."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_llava.checkpoint.stream import DTYPES, Spec
from moe_llava.checkpoint.tables import read_table

KINDS = (("model", "safetensors"), ("pytorch_model", "bin"))
REMAP_BYTES = 2**28


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: safetensors before `.bin`, where a folder holds both, as the original's do.

    Raises:
        ValueError: an index is broken, or names a file that is not there.
    """
    for stem, ending in KINDS:
        whole, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            return _indexed(index)
        if files := [*folder.glob(f"{stem}-*.{ending}")] or [path for path in (whole,) if path.is_file()]:
            return sorted(files)
    return []


def _indexed(index: Path) -> list[Path]:
    places = read_table(index).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError(f"{index} has no weight_map: fetch it again.")
    files = [index.parent / name for name in sorted(set(places.values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ValueError(f"{index.parent} is incomplete: {', '.join(missing)} is missing. Fetch it again.")
    return files


class TensorFile:
    """One `.safetensors` or `.bin` file; the latter is read with `weights_only`, so it can run no code.

    Raises:
        ValueError: the file is broken, or holds more than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specs: dict[str, Spec] = {}
        if path.suffix == ".safetensors":
            with _readable(path), safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    self.specs[name] = (tuple(part.get_shape()), _dtype(path, name, part.get_dtype()))
        else:
            self.specs = {name: (tuple(t.shape), t.dtype) for name, t in _load_bin(path).items()}


class TensorReader:
    """Reads tensors of several files by name. Each is a view of its file: copy what shall stay."""

    def __init__(self, files: list[TensorFile]) -> None:
        self.files = files
        self._mapped: tuple[Path, dict[str, Tensor]] | None = None
        self._touched = 0

    def read(self, file: int, name: str) -> Tensor:
        path = self.files[file].path
        if path.suffix == ".safetensors":
            # Opened for each tensor, so that the pages of the last one are given back.
            with _readable(path), safe_open(path, framework="pt") as opened:
                return opened.get_tensor(name)
        if self._mapped is None or self._mapped[0] != path or self._touched > REMAP_BYTES:
            # Mapped anew now and then, so that the pages read before are given back.
            self._mapped, self._touched = None, 0
            self._mapped = (path, _load_bin(path))
        tensor = self._mapped[1][name]
        self._touched += tensor.nbytes
        return tensor


def _dtype(path: Path, name: str, stored: str) -> torch.dtype:
    if stored not in DTYPES:
        raise ValueError(f"{path} holds {name} as {stored}: quantised weights are not supported.")
    return DTYPES[stored]


def _load_bin(path: Path) -> dict[str, Tensor]:
    with _readable(path):
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of torch before 1.6 cannot be mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise ValueError(f"{path} holds something other than named tensors.")
    return loaded


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what libraries raise for a broken file into one sentence."""
    try:
        yield
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), "it is empty")
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise ValueError(
                f"{path} holds more than tensors, which reading would execute: refused. "
                "Save it again as safetensors where it comes from."
            ) from error
        raise ValueError(f"{path} cannot be read ({reason}): fetch it again.") from error
