"""Features are computed once, found by the bytes of the image, and survive whatever happens to the process."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from moe_llava.data import FeatureStore, features, tower_key

Picture = Callable[..., Path]


class Tower:
    """Two tokens of width three: the mean colours, twice. Counts the images it has seen."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return pixels.mean((2, 3))[:, None].repeat(1, 2, 1)


@pytest.fixture
def build(tmp_path: Path, image_processor: CLIPImageProcessor) -> Callable[..., FeatureStore]:
    """`build(paths, tower)` -> a store in `tmp_path`."""

    def make(paths: list[Path], tower: Callable[[Tensor], Tensor], **options: Any) -> FeatureStore:
        settings = {"key": "k", "folder": tmp_path / "stores", "batch_size": 2, "progress": False} | options
        return FeatureStore.build(paths, tower, image_processor, **settings)

    return make


def expected(path: Path, image_processor: CLIPImageProcessor) -> Tensor:
    from moe_llava.data import load_image

    return Tower()(image_processor(images=[load_image(path)], return_tensors="pt")["pixel_values"])[0]


def test_a_row_is_the_tower_s_feature(
    build: Callable[..., FeatureStore], picture: Picture, image_processor: CLIPImageProcessor
) -> None:
    paths = [picture(color) for color in ("red", "blue", "lime")]
    store = build(paths, Tower())
    assert store.shape == (2, 3)
    for path in paths:
        assert store[path].dtype == torch.float32
        torch.testing.assert_close(store[path], expected(path, image_processor), atol=2e-3, rtol=1e-3)  # float16
    exact = build(paths, Tower(), dtype=np.float32)
    assert torch.equal(exact[paths[1]], expected(paths[1], image_processor))


def test_only_what_is_missing_is_computed(build: Callable[..., FeatureStore], picture: Picture) -> None:
    tower = Tower()
    red, copy, blue = picture("red"), picture("red", "copy.png"), picture("blue")
    assert len(build([red, copy, red], tower)) == 1
    assert tower.images == 1
    store = build([red, copy, blue], tower)
    assert (tower.images, len(store)) == (2, 2)
    assert torch.equal(store[red], store[copy])
    build([red, blue], tower)
    assert tower.images == 2


def test_a_changed_image_is_another_image(build: Callable[..., FeatureStore], picture: Picture) -> None:
    path = picture("red")
    store = build([path], Tower())
    assert path in store
    picture("blue", "red.png")
    os.utime(path, ns=(1, 1))
    assert path not in store
    with pytest.raises(KeyError, match="build it again"):
        store[path]


def test_opened_again_and_in_other_processes(
    build: Callable[..., FeatureStore], picture: Picture, tmp_path: Path
) -> None:
    path = picture("red")
    store = build([path], Tower())
    for again in (FeatureStore.open(tmp_path / "stores", "k"), pickle.loads(pickle.dumps(store))):
        assert torch.equal(again[path], store[path])
    assert len(FeatureStore.open(tmp_path / "stores", "another")) == 0


def test_a_build_goes_on_where_it_was_killed(
    build: Callable[..., FeatureStore], picture: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dying before or after any rename leaves a valid store; nothing is lost that was renamed."""
    monkeypatch.setattr(features, "_SHARD_BYTES", 1)  # a shard a batch
    paths = [picture(color) for color in ("red", "blue", "lime", "black", "white")]
    whole = build(paths, Tower(), key="whole")
    for steps in range(8):
        _die_after(steps, monkeypatch, lambda: build(paths, Tower()))
        left = FeatureStore.open(tmp_path / "stores", "k")
        assert len(left) == min(5, 2 * max(0, (steps - 1) // 2))
        tower = Tower()
        store = build(paths, tower)
        assert tower.images == 5 - len(left)
        assert all(torch.equal(store[path], whole[path]) for path in paths)
        shutil.rmtree(store.directory)


class Killed(BaseException):
    """What no code may catch, as the code of a killed process catches nothing."""


def _die_after(steps: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do some work in which the process dies instead of making rename number `steps`."""
    done = 0
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal done
        if done == steps:
            raise Killed
        done += 1
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        try:
            work()
        except Killed:
            return


def test_leftovers_of_killed_builds_are_swept_after_a_day(build: Callable[..., FeatureStore], picture: Picture) -> None:
    path = picture("red")
    store = build([path], Tower())
    old, new = store.directory / "shard-a.npy", store.directory / "shard-b.npy.tmp"
    for leftover in (old, new):
        leftover.write_bytes(b"")
    os.utime(old, (0, 0))
    build([path], Tower())
    assert (old.exists(), new.exists()) == (False, True)
    assert path in FeatureStore(store.directory)


def test_a_full_disk_is_one_sentence_and_leaves_no_rubbish(
    build: Callable[..., FeatureStore], picture: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.np, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device.*choose another folder"):
        build([picture("red")], Tower())
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_disk_too_small_is_told_before_the_work(
    build: Callable[..., FeatureStore], picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    tower = Tower()
    with pytest.raises(OSError, match="larger disk"):
        build([picture(color) for color in ("red", "blue", "lime")], tower)
    assert tower.images == 2


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    build: Callable[..., FeatureStore], picture: Picture, tmp_path: Path
) -> None:
    tower = Tower()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        build([picture("red")], tower, folder=tmp_path / "file")
    assert tower.images == 0


def test_features_that_cannot_be_kept_are_refused(build: Callable[..., FeatureStore], picture: Picture) -> None:
    path = picture("red")
    with pytest.raises(ValueError, match="store them as float32"):
        build([path], lambda pixels: torch.full((len(pixels), 1, 1), 1e6))
    with pytest.raises(ValueError, match="expected \\(n, tokens, width\\)"):
        build([path], lambda pixels: pixels)
    build([path], Tower())
    with pytest.raises(ValueError, match="another key"):
        build([picture("blue")], lambda pixels: torch.zeros(len(pixels), 1, 1))
    with pytest.raises(ValueError, match=r"gone\.png"):
        build([path.with_name("gone.png")], Tower())


def test_tower_key_knows_weights_configuration_and_preprocessing(
    image_processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14))
    key = tower_key(tower, image_processor, layer=-2)
    tower.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    again = CLIPVisionModel.from_pretrained(tmp_path), CLIPImageProcessor.from_pretrained(tmp_path)
    assert tower_key(*again, layer=-2) == key
    assert tower_key(tower, image_processor, layer=-1) != key
    other = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28})
    assert tower_key(tower, other, layer=-2) != key
    assert tower_key(tower.to(torch.bfloat16), image_processor, layer=-2) != key
    with torch.no_grad():
        again[0].get_parameter(next(name for name, _ in again[0].named_parameters())).view(-1)[0] += 1
    assert tower_key(*again, layer=-2) != key


def test_the_index_of_a_shard_is_readable(build: Callable[..., FeatureStore], picture: Picture) -> None:
    store = build([picture("red"), picture("blue")], Tower())
    (index,) = store.directory.glob("shard-*.json")
    assert np.load(index.with_suffix(".npy")).shape == (2, 2, 3)
    assert len(json.loads(index.read_text())["images"]) == 2
