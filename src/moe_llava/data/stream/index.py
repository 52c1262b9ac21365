"""Where the rows of a file begin and end: found once, kept on disk, read through memory mapping."""

import hashlib
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_CHUNK = 2**24


def bounds(path: Path, folder: Path, find: Callable[[Path], Iterator[np.ndarray]]) -> np.ndarray:
    """First and last byte (exclusive) of each row, `(row, 2)`; from `folder` unless the file has changed since.

    Raises:
        OSError: the index cannot be written.
    """
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {find.__name__}"
    index = folder / f"{path.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.u64"
    if not index.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        beside = index.with_name(f".{index.name}.{uuid.uuid4().hex}")
        try:
            with beside.open("wb") as file:
                for piece in find(path):
                    file.write(np.ascontiguousarray(piece, dtype=np.uint64).tobytes())
            beside.replace(index)
        finally:
            beside.unlink(missing_ok=True)
    if index.stat().st_size == 0:
        return np.zeros((0, 2), dtype=np.uint64)
    return np.memmap(index, dtype=np.uint64, mode="r").reshape(-1, 2)


def lines(path: Path) -> Iterator[np.ndarray]:
    """Bounds of the lines that hold more than white space, chunk by chunk."""
    start, offset = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + offset
            offset += len(chunk)
            if len(ends):
                starts = np.concatenate([[start], ends[:-1] + 1])
                start = int(ends[-1]) + 1
                yield _not_blank(path, np.stack([starts, ends], axis=1))
    if start < offset:
        yield _not_blank(path, np.array([[start, offset]]))


def _not_blank(path: Path, found: np.ndarray) -> np.ndarray:
    """Only short lines can be blank; those are looked at."""
    short = np.flatnonzero(found[:, 1] - found[:, 0] < 8)
    blank = [row for row in short if not read(path, *found[row]).strip()]
    return np.delete(found, blank, axis=0)


def members(path: Path) -> Iterator[np.ndarray]:
    """Bounds of the samples of a tar: runs of members that share their name up to its first dot.

    Raises:
        ValueError: the tar is broken or compressed.
    """
    key, start = None, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                if not member.isfile():
                    continue
                if (name := sample_key(member.name)) != key:
                    if key is not None:
                        yield np.array([[start, member.offset]])
                    key, start = name, member.offset
            if key is not None:
                yield np.array([[start, tar.offset]])
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} cannot be read as an uncompressed tar ({error}): unpack it, or write it anew."
        ) from error


def sample_key(name: str) -> str:
    """A member's name up to the first dot of its last part, as WebDataset has it."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def read(path: Path, start: int, end: int) -> bytes:
    """Bytes of a file, by a descriptor of this call alone: safe in any process and thread."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, int(end) - int(start), int(start))
    finally:
        os.close(descriptor)


def line_number(path: Path, offset: int) -> int:
    """The line on which a byte stands; counted when someone asks."""
    count = 1
    with path.open("rb") as file:
        while offset > 0 and (chunk := file.read(min(_CHUNK, offset))):
            count += chunk.count(b"\n")
            offset -= len(chunk)
    return count
