"""Features of a frozen vision tower: computed once, kept on disk, memory-mapped.

A store is a folder of shards, each a `.npy` of rows and a `.json` that names the images of those rows by the SHA-256
of their bytes. A file is written under a temporary name and renamed; a shard counts once its `.json` is there. So a
process may die at any moment, or two may build at once, and the store stays valid.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from moe_llava.data.images import load_image

_SHARD_BYTES = 256 * 2**20
_FILES = "files.json"
_TEMPORARY = ".tmp"
_DAY = 86_400.0  # seconds
_VOLATILE = {
    "name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "processor_class",
    "auto_map",
}

Encode = Callable[[Tensor], Tensor]
Digest = bytes


class FeatureStore:
    """`store[path]` is the feature of an image file, `path in store` whether it is there.

    The bytes of the file are the key: a copy of an image is found, a changed image is not.
    """

    def __init__(self, directory: str | Path) -> None:
        """Open the store in `directory`; an empty or missing folder is an empty store."""
        self.directory = Path(directory)
        self.shape: tuple[int, int] | None = None
        self._rows: dict[Digest, tuple[str, int]] = {}
        self._digests: dict[str, tuple[int, int, str]] = _read_files(self.directory / _FILES)
        for index in sorted(self.directory.glob("shard-*.json")):
            self._add(index.stem, json.loads(index.read_text(encoding="utf-8")))

    @classmethod
    def open(cls, folder: str | Path, key: str, dtype: type[np.floating] = np.float16) -> "FeatureStore":
        """The store that `build` makes from the same `folder`, `key` and `dtype`."""
        return cls(Path(folder) / f"{key}-{np.dtype(dtype).name}")

    @classmethod
    def build(
        cls,
        paths: Iterable[str | Path],
        encode: Encode,
        image_processor: BaseImageProcessor,
        key: str,
        folder: str | Path,
        batch_size: int = 32,
        dtype: type[np.floating] = np.float16,
        progress: bool = True,
    ) -> "FeatureStore":
        """Compute what is missing and return the store.

        Args:
            paths: image files; those with the same bytes are stored once.
            encode: pixels (n, 3, H, W) -> features (n, tokens, width); it moves them to its device itself.
            image_processor: files -> pixels.
            key: names tower and preprocessing, see `tower_key`.
            folder: where stores live; this one is in a sub-folder named by key and dtype.
            batch_size: images encoded at once.
            dtype: of the stored numbers.
            progress: show a bar.

        Raises:
            ValueError: for a broken image, features of another shape than stored, or too large for `dtype`.
            OSError: if the folder cannot be written or the disk is too small; the message says what to do.
        """
        store = cls.open(folder, key, dtype)
        missing = store._missing(paths, progress)
        store._write_files()  # first, so that a folder that cannot be written is found before the work
        _sweep(store.directory)
        if missing:
            batches = store._encode(missing, encode, image_processor, batch_size, np.dtype(dtype), progress)
            store._write_shards(batches, len(missing))
        return store

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str | Path) and self._digest(Path(path)) in self._rows

    def __getitem__(self, path: str | Path) -> Float[Tensor, "tokens width"]:
        """Features of an image file, float32.

        Raises:
            KeyError: if the image is not in the store.
        """
        digest = self._digest(Path(path))
        if digest not in self._rows:
            raise KeyError(f"{path} is not in the feature store {self.directory}; build it again with this image")
        name, row = self._rows[digest]
        shard = np.load(self.directory / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(np.array(shard[row], dtype=np.float32))

    def _add(self, name: str, index: dict[str, Any]) -> None:
        self.shape = (index["tokens"], index["width"])
        for row, digest in enumerate(index["images"]):
            self._rows[bytes.fromhex(digest)] = (name, row)

    def _digest(self, path: Path) -> Digest:
        """SHA-256 of the file; taken from memory while its size and time of change are the same."""
        status = path.stat()
        name = str(path.absolute())
        known = self._digests.get(name)
        if known is None or known[:2] != (status.st_size, status.st_mtime_ns):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            known = self._digests[name] = (status.st_size, status.st_mtime_ns, digest)
        return bytes.fromhex(known[2])

    def _missing(self, paths: Iterable[str | Path], progress: bool) -> dict[Digest, Path]:
        missing: dict[Digest, Path] = {}
        for path in tqdm(list(paths), desc="read images", disable=not progress):
            if not Path(path).is_file():
                raise ValueError(f"{path}: no such image file; correct the path or set the image folder")
            digest = self._digest(Path(path))
            if digest not in self._rows:
                missing.setdefault(digest, Path(path))
        return missing

    def _encode(
        self,
        images: dict[Digest, Path],
        encode: Encode,
        image_processor: BaseImageProcessor,
        batch_size: int,
        dtype: np.dtype,
        progress: bool,
    ) -> Iterator[tuple[list[Digest], np.ndarray]]:
        digests = list(images)
        with ThreadPoolExecutor() as pool, tqdm(total=len(digests), desc="features", disable=not progress) as bar:
            for start in range(0, len(digests), batch_size):
                batch = digests[start : start + batch_size]
                pictures = list(pool.map(load_image, [images[digest] for digest in batch]))
                pixels = image_processor(images=pictures, return_tensors="pt")["pixel_values"]
                with torch.inference_mode():
                    features = encode(pixels).to("cpu", torch.float32).numpy()
                yield batch, self._checked(features, len(batch), dtype)
                bar.update(len(batch))

    def _checked(self, features: np.ndarray, count: int, dtype: np.dtype) -> np.ndarray:
        if features.ndim != 3 or len(features) != count:
            raise ValueError(f"encode gave shape {features.shape} for {count} images; expected (n, tokens, width)")
        if self.shape is not None and features.shape[1:] != self.shape:
            raise ValueError(f"features are {features.shape[1:]}, the store holds {self.shape}; use another key")
        with np.errstate(over="ignore"):
            stored = features.astype(dtype)
        if not np.isfinite(stored).all():
            raise ValueError(f"features are not finite as {dtype}; store them as float32, or check the vision tower")
        return stored

    def _write_shards(self, batches: Iterable[tuple[list[Digest], np.ndarray]], total: int) -> None:
        digests: list[Digest] = []
        rows: list[np.ndarray] = []
        for batch, features in batches:
            if self.shape is None:
                self.shape = (features.shape[1], features.shape[2])
            if not digests:
                self._check_space(features[0].nbytes * total)
            digests += batch
            rows.append(features)
            total -= len(batch)
            if sum(part.nbytes for part in rows) >= _SHARD_BYTES:
                self._write_shard(digests, np.concatenate(rows))
                digests, rows = [], []
        if digests:
            self._write_shard(digests, np.concatenate(rows))

    def _write_shard(self, digests: Sequence[Digest], features: np.ndarray) -> None:
        name = f"shard-{uuid.uuid4().hex}"
        index = {
            "tokens": features.shape[1],
            "width": features.shape[2],
            "images": [digest.hex() for digest in digests],
        }
        _write(self.directory / f"{name}.npy", lambda file: np.save(file, features))
        _write(self.directory / f"{name}.json", lambda file: file.write(json.dumps(index).encode()))
        self._add(name, index)

    def _write_files(self) -> None:
        _write(self.directory / _FILES, lambda file: file.write(json.dumps(self._digests).encode()))

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise OSError(
                f"image features need {needed / 1e9:.1f} GB and {self.directory} has {free / 1e9:.1f} GB free; "
                "choose a folder on a larger disk, or train without a feature store"
            )


def tower_key(tower: PreTrainedModel, image_processor: BaseImageProcessor, **extra: Any) -> str:
    """A name for what a vision tower makes of an image: equal towers and preprocessing give equal keys.

    It covers configuration, every weight, preprocessing and `extra` (feature layer, prefix tokens dropped, ...).
    """
    digest = hashlib.sha256()
    described = [_stable(tower.config.to_dict()), _stable(image_processor.to_dict()), extra]
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _stable(description: Any) -> Any:
    """Without what changes when the same thing is saved and loaded, at any depth."""
    if not isinstance(description, dict):
        return description
    return {name: _stable(value) for name, value in description.items() if str(name).lstrip("_") not in _VOLATILE}


def _read_files(path: Path) -> dict[str, tuple[int, int, str]]:
    if not path.is_file():
        return {}
    return {name: tuple(known) for name, known in json.loads(path.read_text(encoding="utf-8")).items()}


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        remedy = "free space, or choose another folder for image features"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror or error}); {remedy}") from error


def _sweep(directory: Path) -> None:
    """Remove what a killed build left behind: unfinished files, and rows without names, older than a day."""
    leftovers = [*directory.glob(f"*{_TEMPORARY}")]
    leftovers += [rows for rows in directory.glob("shard-*.npy") if not rows.with_suffix(".json").exists()]
    for path in leftovers:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _DAY:
                path.unlink()
