"""Streams: what ten million rows take, and samples a second of every form beside what a training step eats.

    python benchmarks/stream.py --data runs/tiny/data --model runs/tiny/sparsify --out stream.json

`--rows 10000000` writes a JSON Lines file of that many conversations (1.3 GB) to a temporary folder first. Resident
memory is read in a process of its own for each measurement.
"""

import argparse
import io
import json
import multiprocessing
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

SAMPLES = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the demo's data")
    parser.add_argument("--model", required=True, help="folder of a model, for its processor and a training step")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", help="also write the figures here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures: dict[str, Any] = {"rows": alone(many_rows, folder, options.rows), "forms": {}}
        print(figures["rows"])
        write_forms(folder, options.data)
        for form in ("rows.jsonl", "rows.parquet", "rows.tar", "saved"):
            figures["forms"][form] = alone(samples_a_second, folder, form, options.model, 0)
            print(form, figures["forms"][form])
        figures["two workers"] = alone(samples_a_second, folder, "rows.tar", options.model, 2)
        figures["trainer"] = alone(training_step, folder, options.model)
        print("two workers, rows.tar", figures["two workers"], "trainer", figures["trainer"])
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")


def alone(measure: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def resident() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many_rows(folder: Path, count: int) -> dict[str, float]:
    """Index a file of `count` rows, walk a whole epoch's order, read random rows."""
    from moe_llava.data.stream import BlockShuffle, open_rows

    path = folder / "many.jsonl"
    with path.open("w") as file:
        for number in range(count):
            asked = f'{{"from": "human", "value": "How much is {number} and one?"}}'
            turns = f'[{asked}, {{"from": "gpt", "value": "{number + 1}"}}]'
            file.write(f'{{"id": {number}, "conversations": {turns}}}\n')
    before = resident()
    started = time.perf_counter()
    rows = open_rows(str(path), folder / "index")
    indexed = time.perf_counter() - started
    order = BlockShuffle(rows.blocks, len(rows), seed=0)
    started = time.perf_counter()
    seen = sum(1 for _ in order)
    walked = time.perf_counter() - started
    assert seen == len(rows) == count
    started = time.perf_counter()
    for number in islice(order, 20_000):
        assert rows[number].value["id"] == number
    read = 20_000 / (time.perf_counter() - started)
    more = resident() - before
    path.unlink()
    return {
        "rows": count,
        "index seconds": round(indexed, 1),
        "order of an epoch, seconds": round(walked, 1),
        "rows read a second": round(read),
        "resident MiB before": round(before, 1),
        "resident MiB more": round(more, 1),
    }


def write_forms(folder: Path, data: Path) -> None:
    """The demo's first samples, pictures inside where the form allows it."""
    import datasets

    source = data / "easy_vqa" / "train.json"
    rows = json.loads(source.read_text())[:SAMPLES]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "images").symlink_to((source.parent / "images").resolve())
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for number, row in enumerate(rows):
            picture = (source.parent / row["image"]).read_bytes()
            for suffix, content in (
                ("json", json.dumps({"conversations": row["conversations"]}).encode()),
                ("png", picture),
            ):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    table = [
        {
            "conversations": row["conversations"],
            "image": {"bytes": (source.parent / row["image"]).read_bytes(), "path": None},
        }
        for row in rows
    ]
    dataset = datasets.Dataset.from_list(table).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "saved")
    dataset.to_parquet(folder / "rows.parquet", batch_size=500)


def samples_a_second(folder: Path, form: str, model: str, workers: int) -> float:
    """Samples a second out of the loader, in shuffled order, pictures decoded."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader

    from moe_llava.checkpoint.folder import load_processor
    from moe_llava.data import Collator
    from moe_llava.data.stream import BlockShuffle, StreamDataset, StreamMixture, open_rows

    torch.set_num_threads(1)
    processor = load_processor(model)
    rows = open_rows(str(folder / form), folder / "index")
    mixed = StreamMixture([(StreamDataset(rows, processor, folder), 1.0)], 0)
    batches = BatchSampler(BlockShuffle(mixed.blocks, len(mixed)), 16, drop_last=False)
    collate = Collator(processor.tokenizer.pad_token_id)
    loader = DataLoader(mixed, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    started = time.perf_counter()
    count = sum(len(batch["input_ids"]) for batch in loader)
    return round(count / (time.perf_counter() - started), 1)


def training_step(folder: Path, model: str) -> float:
    """Samples a second of forward and backward passes over the whole model, tower included."""
    import torch

    from moe_llava.checkpoint.folder import load_model
    from moe_llava.data import Collator
    from moe_llava.data.stream import StreamDataset, open_rows

    torch.set_num_threads(1)
    loaded, processor = load_model(model, dtype=torch.float32)
    rows = StreamDataset(open_rows(str(folder / "rows.tar"), folder / "index"), processor, folder)
    batch = Collator(processor.tokenizer.pad_token_id)([rows[number] for number in range(16)])
    loaded.train()
    loaded(**batch).loss.backward()
    started = time.perf_counter()
    for _ in range(10):
        loaded(**batch).loss.backward()
    return round(160 / (time.perf_counter() - started), 1)


if __name__ == "__main__":
    main()
