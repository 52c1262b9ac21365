"""Files and data sets -> rows."""

import functools
import glob
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_llava.data.records import read_records
from moe_llava.data.stream import index
from moe_llava.data.stream.rows import Row, Rows, even_blocks, joined

_BLOCK = 4096
_OPEN_GROUPS = 4
HUB = "hf:"
_IMAGE_FIELDS = ("image", "images")


def streams(path: str) -> bool:
    """Whether a data entry can only be streamed: Parquet, tar shards, Hugging Face data sets, patterns."""
    return path.startswith(HUB) or Path(path).suffix in (".parquet", ".tar") or Path(path).is_dir() or "*" in path


def open_rows(path: str, index_folder: Path) -> Rows:
    """Open a source by what it is: `.jsonl`, `.json`, `.parquet`, `.tar`, a pattern of them (`shards/*.tar`), a folder
    written by `save_to_disk`, or `hf:NAME` or `hf:NAME:SPLIT` from the hub.

    Raises:
        ValueError: there is no such file, or it is something else.
    """
    if path.startswith(HUB):
        return HuggingFaceRows.from_hub(path.removeprefix(HUB))
    if Path(path).is_dir():
        return HuggingFaceRows.from_disk(path)
    names = sorted(glob.glob(path))  # noqa: PTH207 - patterns may be absolute
    if not names:
        raise ValueError(f"{path}: no such file; correct the path.")
    openers: dict[str, Callable[[Path, Path], Rows]] = {
        ".jsonl": JsonLinesRows,
        ".json": JsonRows,
        ".parquet": ParquetRows,
        ".tar": TarRows,
    }
    if unknown := [name for name in names if Path(name).suffix not in openers]:
        raise ValueError(f"{unknown[0]} cannot be streamed: name it {', '.join(openers)}, or give a data set's folder.")
    return joined([openers[Path(name).suffix](Path(name), index_folder) for name in names])


class JsonLinesRows:
    """A JSON Lines file; 16 bytes of index a line, on disk."""

    def __init__(self, path: Path, index_folder: Path) -> None:
        self.path = path
        self._bounds = index.bounds(path, index_folder, index.lines)
        self.blocks = even_blocks(len(self._bounds), _BLOCK)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index_: int) -> Row:
        text = index.read(self.path, *self._bounds[index_])
        try:
            return Row(json.loads(text))
        except ValueError:
            return Row(text.decode(errors="replace"))

    def where(self, index_: int) -> str:
        return f"{self.path}:{index.line_number(self.path, int(self._bounds[index_][0]))}"


class JsonRows:
    """A JSON file that is held in memory, beside sources that are not."""

    def __init__(self, path: Path, index_folder: Path) -> None:
        self.path = path
        self._records, problems = read_records(path)
        if problems:
            raise ValueError(str(problems[0]))
        self.blocks = even_blocks(len(self._records), _BLOCK)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index_: int) -> Row:
        return Row(self._records[index_].value)

    def where(self, index_: int) -> str:
        return f"{self.path}:{self._records[index_].line}"


class ParquetRows:
    """A Parquet file; a few row groups are in memory at a time."""

    def __init__(self, path: Path, index_folder: Path) -> None:
        try:
            from pyarrow import ArrowInvalid
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise ValueError("Parquet needs pyarrow: pip install 'moe-llava[data]'.") from error
        self.path = path
        try:
            metadata = ParquetFile(path).metadata
        except (ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.blocks = np.concatenate([[0], self._ends[:-1]]).astype(np.int64)
        self._group = functools.lru_cache(_OPEN_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index_: int) -> Row:
        group = int(np.searchsorted(self._ends, index_, side="right"))
        table = self._group(group)
        value = table.slice(index_ - int(self.blocks[group]), 1).to_pylist()[0]
        return _with_files(value)

    def where(self, index_: int) -> str:
        return f"{self.path}: row {index_}"

    def _read_group(self, group: int) -> Any:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self.path).read_row_group(group)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_group"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._group = functools.lru_cache(_OPEN_GROUPS)(self._read_group)


class TarRows:
    """A WebDataset shard: `0017.json` beside `0017.jpg`, `0017.1.png`, ..."""

    def __init__(self, path: Path, index_folder: Path) -> None:
        self.path = path
        self._bounds = index.bounds(path, index_folder, index.members)
        self.blocks = even_blocks(len(self._bounds), _BLOCK)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, index_: int) -> Row:
        members = self._members(index_)
        key = index.sample_key(next(iter(members)))
        text = members.pop(f"{key}.json", b"")
        try:
            value = json.loads(text)
        except ValueError:
            return Row(text.decode(errors="replace"))
        if isinstance(value, dict) and not any(value.get(field) for field in _IMAGE_FIELDS):
            value = {**value, "images": sorted(members)}
        # A sample may name its images in full, or by what follows its key.
        short = {name.removeprefix(f"{key}."): data for name, data in members.items()}
        return Row(value, {**short, **members})

    def where(self, index_: int) -> str:
        return f"{self.path}: {index.sample_key(next(iter(self._members(index_))))}"

    def _members(self, index_: int) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(index.read(self.path, *self._bounds[index_])), mode="r:") as tar:
            for member in tar:
                if member.isfile() and (file := tar.extractfile(member)) is not None:
                    members[member.name] = file.read()
        return members


class HuggingFaceRows:
    """A data set of the `datasets` library, memory-mapped from its Arrow files."""

    def __init__(self, dataset: Any, name: str) -> None:
        from datasets import Image, Sequence

        for column, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(column, Image(decode=False))
            elif isinstance(getattr(feature, "feature", None), Image):
                dataset = dataset.cast_column(column, Sequence(Image(decode=False)))
        self._dataset, self.name = dataset, name
        self.blocks = even_blocks(len(dataset), _BLOCK)

    @classmethod
    def from_disk(cls, folder: str) -> "HuggingFaceRows":
        """A folder that `Dataset.save_to_disk` wrote.

        Raises:
            ValueError: it is something else, or holds several splits.
        """
        datasets = _datasets()
        try:
            dataset = datasets.load_from_disk(folder)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{folder} is no data set written by `save_to_disk`: {error}") from error
        if isinstance(dataset, Mapping):
            raise ValueError(f"{folder} holds the splits {', '.join(dataset)}: give the folder of one, {folder}/train.")
        return cls(dataset, folder)

    @classmethod
    def from_hub(cls, name: str) -> "HuggingFaceRows":
        """`NAME` or `NAME:SPLIT`; fetched once, into the library's cache.

        Raises:
            ValueError: it cannot be fetched.
        """
        name, _, split = name.partition(":")
        datasets = _datasets()
        try:
            return cls(datasets.load_dataset(name, split=split or "train"), f"{HUB}{name}")
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot load the data set {name}: {str(error).splitlines()[0]}") from error

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index_: int) -> Row:
        return _with_files(self._dataset[index_])

    def where(self, index_: int) -> str:
        return f"{self.name}: row {index_}"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("Hugging Face data sets need a package: pip install 'moe-llava[data]'.") from error
    return datasets


def _with_files(value: dict[str, Any]) -> Row:
    """A row of a table: empty fields are left out, images of `{bytes, path}` become files."""
    files: dict[str, bytes] = {}
    record = _plain({name: field for name, field in value.items() if field is not None})
    for field in _IMAGE_FIELDS:
        if field in record:
            images = record[field] if isinstance(record[field], list) else [record[field]]
            record[field] = [_named(image, number, files) for number, image in enumerate(images)]
    return Row(record, files)


def _named(image: Any, number: int, files: dict[str, bytes]) -> Any:
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes):
        name = f"image {number}"
        files[name] = data
        return name
    return image.get("path") if isinstance(image, dict) else image


def _plain(value: Any) -> Any:
    """Without the `None`s by which a table marks fields that other rows have."""
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items() if field is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
