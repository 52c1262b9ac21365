"""The file of routes: one row a token in Parquet, written and read in pieces, so that its length costs no memory."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from moe_llava.routing.recorder import Choices

PARTS = ("prompt", "answer", "generated")
ROW_GROUP_BYTES = 2 * 2**20
_KEY = b"moe_llava"


def parquet() -> tuple[ModuleType, ModuleType]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        ValueError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "Routes are kept in Parquet, which needs pyarrow: pip install 'moe-llava[routing]'."
        ) from error
    return pyarrow, pyarrow.parquet


@dataclass(frozen=True)
class RouteInfo:
    """What the numbers of a file of routes mean; kept in the file's footer.

    Attributes:
        layers: indices of the sparse layers in the decoder, in the order of the lists in each row.
        grid: rows and columns of the vision tower's patches; `None` where they fill no square, and without images.
    """

    model: str
    layers: tuple[int, ...]
    num_experts: int
    top_k: int
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class TokenRows:
    """Some tokens of a trace; `image`, `patch_row` and `patch_column` are -1 where there is none.

    `sample` counts what was traced, in the order of running; `id` is the sample's name. `part` indexes `PARTS`.
    """

    sample: Int[np.ndarray, " token"]
    position: Int[np.ndarray, " token"]
    part: Int[np.ndarray, " token"]
    token_id: Int[np.ndarray, " token"]
    image: Int[np.ndarray, " token"]
    patch_row: Int[np.ndarray, " token"]
    patch_column: Int[np.ndarray, " token"]

    def __len__(self) -> int:
        return len(self.sample)

    @classmethod
    def join(cls, pieces: Sequence["TokenRows"]) -> "TokenRows":
        """Several after one another."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names})


def schema(info: RouteInfo) -> Any:
    """The Arrow schema of a file of routes; `docs/routing.md` explains its columns."""
    arrow, _ = parquet()
    layers, short_word = len(info.layers), arrow.dictionary(arrow.int8(), arrow.string())
    columns = [
        ("sample", arrow.int32()),
        ("id", arrow.string()),
        ("position", arrow.int32()),
        ("part", short_word),
        ("modality", short_word),
        ("token_id", arrow.int32()),
        ("token", arrow.string()),
        ("image", arrow.int16()),
        ("row", arrow.int16()),
        ("column", arrow.int16()),
        ("experts", arrow.list_(arrow.list_(arrow.int16(), info.top_k), layers)),
        ("weights", arrow.list_(arrow.list_(arrow.float32(), info.top_k), layers)),
        ("entropy", arrow.list_(arrow.float32(), layers)),
        ("margin", arrow.list_(arrow.float32(), layers)),
    ]
    return arrow.schema(columns, metadata={_KEY: json.dumps(asdict(info)).encode()})


class RouteWriter:
    """Writes rows to `path`, in groups of about 2 MiB; what is not closed is not there.

    `buffered` never exceeds `rows_per_group` by more than one forward pass.
    """

    def __init__(self, path: Path, info: RouteInfo) -> None:
        _, self._parquet = parquet()
        self.path = path
        self.rows = self.buffered = 0
        bytes_per_row = len(info.layers) * (6 * info.top_k + 8) + 60
        self.rows_per_group = max(1024, ROW_GROUP_BYTES // bytes_per_row)
        self._schema = schema(info)
        self._pieces: list[TokenRows] = []
        self._choices: list[Choices] = []
        self._ids: list[str] = []
        self._tokens: list[str] = []
        self._beside = path.with_name(path.name + ".writing")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._parquet.ParquetWriter(self._beside, self._schema)

    def write(self, rows: TokenRows, choices: Choices, ids: Sequence[str], tokens: Sequence[str]) -> None:
        """Add some tokens. `ids` names the sample and `tokens` holds the text of each."""
        self._pieces.append(rows)
        self._choices.append(choices)
        self._ids += ids
        self._tokens += tokens
        self.rows += len(rows)
        self.buffered += len(rows)
        if self.buffered >= self.rows_per_group:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if self._pieces:
            rows, choices = TokenRows.join(self._pieces), Choices.join(self._choices)
            table = _table(rows, choices, self._ids, self._tokens, self._schema)
            self._writer.write_table(table, row_group_size=self.rows_per_group)
        self._pieces, self._choices, self._ids, self._tokens, self.buffered = [], [], [], [], 0

    def close(self) -> None:
        """Write what is left and give the file its name."""
        self.flush()
        self._writer.close()
        self._beside.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._writer.close()
        self._beside.unlink(missing_ok=True)


def _table(rows: TokenRows, choices: Choices, ids: Sequence[str], tokens: Sequence[str], layout: Any) -> Any:
    arrow, _ = parquet()
    is_text = rows.image < 0

    def words(index: np.ndarray, known: tuple[str, ...]) -> Any:
        return arrow.DictionaryArray.from_arrays(arrow.array(index.astype(np.int8)), arrow.array(known))

    def lists(values: np.ndarray) -> Any:
        array = arrow.array(np.ascontiguousarray(values).reshape(-1))
        for size in reversed(values.shape[1:]):
            array = arrow.FixedSizeListArray.from_arrays(array, size)
        return array

    def where_image(values: np.ndarray) -> Any:
        return arrow.array(values.astype(np.int16), mask=is_text | (values < 0))

    return arrow.Table.from_arrays(
        [
            arrow.array(rows.sample, arrow.int32()),
            arrow.array(ids, arrow.string()),
            arrow.array(rows.position, arrow.int32()),
            words(rows.part, PARTS),
            words(1 - is_text, ("text", "image")),
            arrow.array(rows.token_id, arrow.int32()),
            arrow.array(tokens, arrow.string()),
            where_image(rows.image),
            where_image(rows.patch_row),
            where_image(rows.patch_column),
            lists(choices.experts),
            lists(choices.weights),
            lists(choices.entropy),
            lists(choices.margin),
        ],
        schema=layout,
    )


@dataclass(frozen=True)
class Routes:
    """Rows read from a file of routes; fields that were not asked for are empty."""

    sample: Int[np.ndarray, " token"]
    is_image: Bool[np.ndarray, " token"]
    experts: Int[np.ndarray, "token layer k"]
    weights: Float[np.ndarray, "token layer k"]
    entropy: Float[np.ndarray, "token layer"]
    margin: Float[np.ndarray, "token layer"]


class RouteFile:
    """A file of routes, read in pieces.

    Raises:
        ValueError: the file is absent or holds something else.
    """

    def __init__(self, path: Path) -> None:
        arrow, pq = parquet()
        try:
            self._file = pq.ParquetFile(path)
            self.info = _info((self._file.schema_arrow.metadata or {})[_KEY])
        except (OSError, arrow.ArrowInvalid, KeyError) as error:
            raise ValueError(f"{path} is no file of routes: write one with `moe-llava route`.") from error
        self.path = path
        self.rows = self._file.metadata.num_rows
        self.arrow_schema = self._file.schema_arrow

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tables(self, columns: Sequence[str] | None = None, size: int = 65536) -> Iterator[Any]:
        """Arrow record batches of at most `size` rows, of all columns or of those named."""
        yield from self._file.iter_batches(batch_size=size, columns=columns)

    def routes(self, size: int = 65536) -> Iterator[Routes]:
        """The routes alone, as arrays."""
        names = ["sample", "modality", "experts", "weights", "entropy", "margin"]
        for batch in self.tables(names, size):
            yield Routes(
                sample=batch["sample"].to_numpy(),
                is_image=is_image(batch),
                **{name: array(batch[name]) for name in names[2:]},
            )


def is_image(batch: Any) -> Bool[np.ndarray, " token"]:
    """Which rows of a record batch are image patches."""
    column = batch["modality"].dictionary_decode() if hasattr(batch["modality"], "dictionary") else batch["modality"]
    return np.asarray(column.to_numpy(zero_copy_only=False) == "image")


def array(column: Any) -> np.ndarray:
    """A column of nested lists of fixed size as one array."""
    sizes = []
    while hasattr(column.type, "list_size"):
        sizes.append(column.type.list_size)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(-1, *sizes)


def _info(text: bytes) -> RouteInfo:
    values = json.loads(text)
    grid = values["grid"]
    return RouteInfo(
        model=values["model"],
        layers=tuple(values["layers"]),
        num_experts=values["num_experts"],
        top_k=values["top_k"],
        grid=None if grid is None else (grid[0], grid[1]),
    )
