"""Who answered: for every token of what a model reads and says, the experts of every sparse layer and their weights."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moe_llava.generate.engine import Engine
from moe_llava.generate.plan import Prompt
from moe_llava.model.vision import patch_grid
from moe_llava.routing.recorder import RoutedPass, RouteRecorder, gather
from moe_llava.routing.routes import PARTS, RouteFile, RouteInfo, RouteWriter, TokenRows, parquet
from moe_llava.routing.sequences import Sequences

if TYPE_CHECKING:
    from moe_llava.routing.statistics import RouteStatistics

KEPT_PROMPTS = 12
PENDING_NUMBERS = 2**17
PROMPT, ANSWER, GENERATED = range(len(PARTS))


class Trace:
    """Records the routes of all that an engine's model does inside a `with` block.

    A pass that starts a sequence begins new samples, one for each row of its batch; a pass that goes on from a cache
    continues them. What is recorded is the routing of tokens that the model *reads*: the last token of an answer is
    said and never read, and what follows the end of an answer in a batch is left out, so a trace does not depend on
    how requests were batched. Rows lie in the order of running; `(sample, position)` sorts them.

    Args:
        path: where to write the routes; a temporary file if not given, which goes when this object does.
        model: what to call the model in the file.

    Attributes:
        prompts: the first few by the id of their sample, for the report's pictures.

    Raises:
        ValueError: the model is dense, or another trace of it is open.
    """

    def __init__(self, engine: Engine, path: str | Path | None = None, *, model: str = "") -> None:
        parquet()
        self.path = Path(path) if path is not None else self._temporary() / "routes.parquet"
        self.prompts: dict[str, Prompt] = {}
        self._engine = engine
        self._recorder = RouteRecorder(engine.model)
        config = engine.model.config
        places = patch_grid(config.image_seq_length, config.vision_prefix_tokens) if config.image_seq_length else None
        self._first_cell = places[2] if places else 0
        self.info = RouteInfo(
            model=model or str(getattr(config, "_name_or_path", "")),
            layers=tuple(config.text_config.moe_layers),
            num_experts=config.text_config.num_experts,
            top_k=config.text_config.num_experts_per_tok,
            grid=places[:2] if places else None,
        )
        self._texts = TokenTexts(engine.processor.tokenizer)
        self._ends = _ids(engine.model.generation_config.eos_token_id)
        self._announced: list[str] = []
        self._sequences = Sequences()
        self._writer: RouteWriter | None = None
        # Passes and the samples of their rows: reading many at once is cheaper, above all from a GPU.
        self._pending: list[tuple[RoutedPass, np.ndarray]] = []
        self._numbers = 0

    def _temporary(self) -> Path:
        """A folder that lives as long as this object."""
        folder = tempfile.mkdtemp(prefix="moe-llava-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def __enter__(self) -> Self:
        if self._engine.observer is not None:
            raise ValueError("The model is being traced already: close the first trace.")
        self._writer = RouteWriter(self.path, self.info)
        self._engine.observer = self
        self._recorder.start(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._recorder.stop()
        self._engine.observer = None
        assert self._writer is not None
        if error is None:
            self._settle()
            self._writer.close()
        else:
            self._writer.discard()

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """Tell what the rows of the next pass are; without, samples are named by their number."""
        first = self._sequences.next
        self._announced = [prompt.id or str(first + row) for row, prompt in enumerate(prompts)]
        for name, prompt in zip(self._announced, prompts, strict=True):
            if len(self.prompts) < KEPT_PROMPTS:
                self.prompts.setdefault(name, prompt)

    def keep(self, rows: Sequence[int]) -> None:
        """Tell that the next passes go on with these rows."""
        self._sequences.keep(rows)

    def _receive(self, done: RoutedPass) -> None:
        """Keep one pass until there are many."""
        batch = len(done.input_ids)
        if not done.continues:
            self._sequences.begin(batch, self._announced)
            self._announced = []
        running = self._sequences.running
        if len(running) != batch:
            raise ValueError(f"A batch of {batch} continues one of {len(running)}: beams cannot be traced.")
        self._pending.append((done, running))
        self._numbers += done.numbers
        if self._numbers >= PENDING_NUMBERS:
            self._settle()

    def _settle(self) -> None:
        """Turn what is pending into rows and hand them to the writer."""
        pending, self._pending, self._numbers = self._pending, [], 0
        if not pending:
            return
        assert self._writer is not None
        rows, places = self._token_rows(pending)
        choices = gather([done for done, _ in pending], places)
        self._writer.write(rows, choices, self._sequences.names_of(rows.sample), self._texts(rows.token_id.tolist()))
        self._sequences.forget()

    def _token_rows(self, pending: Sequence[tuple[RoutedPass, np.ndarray]]) -> tuple[TokenRows, np.ndarray]:
        """The tokens of all pending passes that belong into the trace, and their places among all tokens."""
        passes = [done for done, _ in pending]
        sizes = [done.input_ids.numel() for done in passes]
        places = np.flatnonzero(_joined([done.real for done in passes]))
        token_id = _joined([done.input_ids for done in passes])[places]
        answer = _joined([torch.zeros_like(done.real) if done.answer is None else done.answer for done in passes])
        says = np.repeat([done.continues and done.input_ids.shape[1] == 1 for done in passes], sizes)[places]
        sample = np.concatenate([np.repeat(running, done.input_ids.shape[1]) for done, running in pending])[places]
        config = self._engine.model.config
        is_image = token_id == config.image_token_id
        position, patches, ended = self._sequences.place(sample, is_image, says & np.isin(token_id, self._ends))
        length = max(config.image_seq_length, 1)
        columns = self.info.grid[1] if self.info.grid else 0
        patch = np.where(is_image, patches % length + self._first_cell, -1)
        fields = {
            "sample": sample,
            "position": position,
            "part": np.where(says, GENERATED, np.where(answer[places], ANSWER, PROMPT)),
            "token_id": token_id,
            "image": np.where(is_image, patches // length, -1),
            "patch_row": np.where(is_image, patch // columns, -1) if columns else np.full(len(patch), -1),
            "patch_column": np.where(is_image, patch % columns, -1) if columns else np.full(len(patch), -1),
        }
        kept = np.flatnonzero(~ended)
        return TokenRows(**{name: values[kept] for name, values in fields.items()}), places[kept]

    def flush(self) -> None:
        """Write what is buffered."""
        assert self._writer is not None
        self._settle()
        self._writer.flush()

    def table(self) -> Any:
        """All routes as one Arrow table, in memory: `.to_pandas()` makes a data frame of it."""
        with self._read() as file:
            arrow, _ = parquet()
            return arrow.Table.from_batches(file.tables(), file.arrow_schema).sort_by(
                [("sample", "ascending"), ("position", "ascending")]
            )

    def statistics(self) -> "RouteStatistics":
        """Loads, entropies, transitions, by modality."""
        from moe_llava.routing import statistics

        with self._read() as file:
            return statistics.gather(file)

    def report(self, path: str | Path, figures: str | Path | None = None) -> None:
        """Write the report as one HTML file, and its figures as PNG and SVG into a folder if one is given."""
        from moe_llava.routing.report import write_report

        images = {name: prompt.images for name, prompt in self.prompts.items()}
        with self._read() as file:
            write_report(file, Path(path), self._engine.processor, images, Path(figures) if figures else None)

    def _read(self) -> RouteFile:
        if not self.path.is_file():
            raise ValueError("The trace is not finished: leave its `with` block first.")
        return RouteFile(self.path)


def _joined(pieces: Sequence[Tensor]) -> np.ndarray:
    """All numbers of several tensors, one after the other."""
    return torch.cat([piece.reshape(-1) for piece in pieces]).cpu().numpy()


class TokenTexts:
    """The text that each token adds when it stands inside a text; each token is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._lead = len(str(tokenizer.decode(self._anchor)))

    def __call__(self, ids: Sequence[int]) -> list[str]:
        known = self._known
        return [known[token] if token in known else self._decode(token) for token in ids]

    def _decode(self, token: int) -> str:
        # Alone, a token of a sentence piece model would lose the blank in front of it.
        text = str(self._tokenizer.decode([*self._anchor, token]))[self._lead :]
        self._known[token] = text
        return text


def _ids(value: int | list[int] | None) -> np.ndarray:
    return np.array([] if value is None else value if isinstance(value, list) else [value], dtype=np.int64)
