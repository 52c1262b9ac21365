"""Large sources by row: what is in memory's reader is in the stream, in any form, order and number of readers."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader

from moe_llava.data import Collator, ConversationDataset, DataError, read_conversations
from moe_llava.data.processor import MoeLlavaProcessor
from moe_llava.data.stream import BlockShuffle, StreamDataset, StreamMixture, open_rows
from moe_llava.data.stream.order import scattered
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny

FORMS = ("jsonl", "parquet", "tar", "shards", "saved", "json")


@pytest.fixture(scope="module")
def processor(tiny: Tiny) -> MoeLlavaProcessor:
    return build_stage(load_recipe(tiny.recipe), "align")[1]


@pytest.fixture(scope="module")
def forms(tiny: Tiny) -> dict[str, str]:
    """The same conversations in every form; in tables and tars the pictures are inside."""
    folder = tiny.folder / "forms"
    folder.mkdir()
    rows = json.loads((tiny.folder / "train.json").read_text())
    (folder / "train.jsonl").write_text("\n\n".join(map(json.dumps, rows)))  # blank lines, and no newline at the end
    (folder / "train.json").write_text(json.dumps(rows))
    write_tables(folder, rows, tiny.folder)
    write_tar(folder / "train.tar", rows, tiny.folder)
    for number in range(2):
        write_tar(folder / f"shard-{number}.tar", rows[16 * number : 16 * number + 16], tiny.folder)
    return {
        "jsonl": str(folder / "train.jsonl"),
        "json": str(folder / "train.json"),
        "parquet": str(folder / "train.parquet"),
        "tar": str(folder / "train.tar"),
        "shards": str(folder / "shard-*.tar"),
        "saved": str(folder / "saved"),
    }


def write_tables(folder: Path, rows: list[dict[str, Any]], images: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs moe-llava[data]")
    table = [
        {"conversations": row["conversations"], "image": {"bytes": (images / row["image"]).read_bytes(), "path": None}}
        if "image" in row
        else {"conversations": row["conversations"], "image": None}
        for row in rows
    ]
    dataset = datasets.Dataset.from_list(table).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "saved")
    dataset.to_parquet(folder / "train.parquet", batch_size=10)


def write_tar(path: Path, rows: list[dict[str, Any]], images: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            add(tar, f"{number:04}.json", json.dumps({"conversations": row["conversations"]}).encode())
            if "image" in row:
                add(tar, f"{number:04}.png", (images / row["image"]).read_bytes())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def stream(path: str, processor: MoeLlavaProcessor, folder: Path, **options: Any) -> StreamDataset:
    return StreamDataset(open_rows(path, folder / "index"), processor, options.pop("images", folder), **options)


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_gives_what_reading_all_of_it_gives(
    form: str, forms: dict[str, str], processor: MoeLlavaProcessor, tiny: Tiny
) -> None:
    whole = ConversationDataset(read_conversations(tiny.folder / "train.json"), processor)
    rows = stream(forms[form], processor, tiny.folder)
    assert len(rows) == len(whole) == 32
    for number in (0, 1, 23, 24, 31):
        assert rows[number].keys() == whole[number].keys()
        for name, tensor in whole[number].items():
            assert torch.equal(rows[number][name], tensor), name


def test_broken_rows_are_named_or_counted(processor: MoeLlavaProcessor, tiny: Tiny, tmp_path: Path) -> None:
    good = json.dumps({"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]})
    missing = json.dumps({"image": "gone.png", **json.loads(good.replace("Hello", "<image> Hello"))})
    (tmp_path / "some.jsonl").write_text(f"{good}\n\n{{broken\n{missing}\n{good}\n")
    strict = stream(str(tmp_path / "some.jsonl"), processor, tmp_path)
    with pytest.raises(DataError, match=r"some\.jsonl:3: row: is no JSON"):
        strict[1]
    with pytest.raises(DataError, match=r"some\.jsonl:4: image: .*gone\.png does not exist"):
        strict[2]
    lenient = stream(str(tmp_path / "some.jsonl"), processor, tmp_path, on_error="skip")
    collate = Collator(processor.tokenizer.pad_token_id)
    batch = collate([lenient[number] for number in range(4)])
    assert (len(batch["input_ids"]), int(batch["skipped"])) == (2, 2)
    nothing = collate([lenient[1], lenient[2]])
    assert (int(nothing["skipped"]), (nothing["labels"] == -100).all()) == (2, True)
    assert "skipped" not in collate([lenient[0]])


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    assert len(open_rows(str(path), tmp_path / "index")) == 1
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert len(open_rows(str(path), tmp_path / "index")) == 2
    path.write_text("")
    assert len(open_rows(str(path), tmp_path / "index")) == 0


@pytest.mark.parametrize("name, message", [("none.jsonl", "no such file"), ("a.txt", "cannot be streamed")])
def test_what_is_no_source_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=message):
        open_rows(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize("name", ["broken.tar", "broken.parquet", "empty"])
def test_a_broken_file_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.tar").write_bytes(b"x" * 1024)
    (tmp_path / "broken.parquet").write_bytes(b"x" * 1024)
    with pytest.raises(ValueError, match=name):
        open_rows(str(tmp_path / name), tmp_path / "index")


def test_an_epoch_is_every_row_once_and_each_its_own() -> None:
    blocks = np.array([0, 5, 9, 30, 31])
    order = BlockShuffle(blocks, 40, window=2, seed=3)
    first = list(order)
    assert sorted(first) == list(range(40))
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    window = {int(np.searchsorted(blocks, index, side="right")) for index in first[:4]}
    assert len(window) <= 2


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_scattered_is_a_permutation(count: int) -> None:
    assert sorted(scattered(index, count, seed=5) for index in range(count)) == list(range(count))


def test_rates_of_a_mixture(forms: dict[str, str], processor: MoeLlavaProcessor, tiny: Tiny) -> None:
    rows = stream(forms["jsonl"], processor, tiny.folder)
    mixed = StreamMixture([(rows, 0.5), (rows, 2.25)], seed=0)
    assert len(mixed) == 16 + 72
    places = [mixed.place(index) for index in range(len(mixed))]
    drawn = Counter(place for place in places if place[0] == 0)
    assert len(drawn) == 16 and set(drawn.values()) == {1}
    twice = Counter(row for part, row in places if part == 1)
    assert sorted(twice.values()) == [2] * 24 + [3] * 8
    assert mixed.blocks[0] == 0 and mixed.blocks.max() < len(mixed) and (np.diff(mixed.blocks) > 0).all()


def test_processes_and_workers_share_without_overlap(
    forms: dict[str, str], processor: MoeLlavaProcessor, tiny: Tiny
) -> None:
    """Two processes with two workers each see every row once; from the middle on, what an uninterrupted run sees."""
    mixed = StreamMixture([(Numbered(forms["parquet"], processor, tiny), 1.0)], seed=0)
    batches = BatchSampler(BlockShuffle(mixed.blocks, len(mixed), window=2, seed=1), 4, drop_last=False)
    seen = []
    for process in range(2):
        mine = BatchSamplerShard(batches, num_processes=2, process_index=process)
        loader = DataLoader(mixed, batch_sampler=mine, num_workers=2, collate_fn=list)
        seen.append([int(sample["number"]) for batch in loader for sample in batch])
    assert sorted(seen[0] + seen[1]) == list(range(32))
    assert seen[0][:4] + seen[1][:4] == list(BlockShuffle(mixed.blocks, 32, window=2, seed=1))[:8]


class Numbered(StreamDataset):
    """Rows that tell their number."""

    def __init__(self, path: str, processor: MoeLlavaProcessor, tiny: Tiny) -> None:
        super().__init__(open_rows(path, tiny.folder / "index"), processor, tiny.folder)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "number": torch.tensor(index)}


def test_pictures_of_a_tar_are_found_by_name(processor: MoeLlavaProcessor, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    turns = [{"from": "human", "value": "<image> a <image> b?"}, {"from": "gpt", "value": "Yes."}]
    with tarfile.open(tmp_path / "two.tar", "w") as tar:
        add(tar, "x/7.json", json.dumps({"conversations": turns, "images": ["b.png", "x/7.a.png"]}).encode())
        add(tar, "x/7.a.png", picture.getvalue())
        add(tar, "x/7.b.png", picture.getvalue())
        add(tar, "x/8.json", json.dumps({"conversations": turns, "images": ["a.png", "a.png"]}).encode())
        add(tar, "x/8.a.png", b"no picture")
    rows = stream(str(tmp_path / "two.tar"), processor, tmp_path)
    assert len(rows) == 2 and len(rows[0]["pixel_values"]) == 2
    with pytest.raises(DataError, match=r"two\.tar: x/8: messages: a\.png: cannot decode"):
        rows[1]
