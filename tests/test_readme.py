"""The README's commands and code run as they stand, in a folder that looks like one after `make demo`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import Tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    Image.new("RGB", (60, 40), "teal").save(folder / "photo.png")
    recipe = tiny.recipe.read_text().replace(f"{tiny.folder}/run", "runs/mine")
    (folder / "mine.toml").write_text(recipe)
    (folder / "mine.json").write_text((tiny.folder / "train.json").read_text())
    shutil.copytree(tiny.folder / "images", folder / "images")
    data = folder / "runs" / "tiny" / "data" / "easy_vqa"
    data.mkdir(parents=True)
    shutil.copytree(tiny.folder / "images", data / "images")
    rows = [json.loads(line) for line in (tiny.folder / "questions.jsonl").read_text().splitlines()]
    (data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pope(data.parent / "emoji_pope", tiny)
    run(f"moe-llava train {tiny.recipe} --output runs/tiny", folder)
    return folder


def write_pope(folder: Path, tiny: Tiny) -> None:
    """A POPE of the tiny pictures, two questions each."""
    shutil.copytree(tiny.folder / "images", folder / "val2014")
    (folder / "coco").mkdir()
    rows = [
        {"image": image.name, "text": f"is it {image.stem if label == 'yes' else 'black'}?", "label": label}
        for image in sorted((folder / "val2014").iterdir())
        for label in ("yes", "no")
    ]
    sets = ("adversarial", "popular", "random")
    for name in sets:
        (folder / "coco" / f"coco_pope_{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{**row, "category": name} for name in sets for row in rows]
    lines = [json.dumps({"question_id": number, **row}) for number, row in enumerate(asked)]
    (folder / "llava_pope_test.jsonl").write_text("\n".join(lines))


def run(command: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"


def test_shell_commands_run_in_their_order(folder: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 8
    for command in commands:
        if "--resume" in command:
            (folder / "runs" / "mine" / "sparsify" / "stage.json").unlink()
        run(command, folder)


def test_python_code_runs(folder: Path) -> None:
    code = blocks("python")
    assert len(code) >= 2
    for block in code:
        (folder / "block.py").write_text(block)
        run(f"{sys.executable} block.py", folder)


def test_make_targets_exist() -> None:
    for target in ("demo", "test", "check", "bench"):
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## Where everything is")[1]
    source = ROOT / "src" / "moe_llava"
    for name in re.findall(r"\b([a-z_]+\.py)\b", tree):
        assert list(source.rglob(name)), name
    for package in source.iterdir():
        if package.is_dir() and (package / "__init__.py").exists():
            assert f"{package.name}/" in tree, package.name
    assert not re.search(r"@@\w+@@", README)
