"""A conversation at a real terminal: commands, and Ctrl-C that stops the answer and not the program."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from moe_llava.checkpoint.folder import save_model
from moe_llava.recipe import load_recipe
from moe_llava.train.build import build_stage
from tests.tiny import Tiny

PROMPT = "> "


@pytest.fixture
def chat(tiny: Tiny, tmp_path: Path) -> Iterator[pexpect.spawn]:
    context = {"model.max_length": "4000", "model.language.config.max_position_embeddings": "1000000"}
    model, processor = build_stage(load_recipe(tiny.recipe, context), "align")
    model.generation_config.eos_token_id = None
    save_model(tmp_path, model, processor)
    program = "import sys; from moe_llava.cli import main; sys.exit(main())"
    # So long an answer that no machine ends it before it is stopped.
    arguments = ["-c", program, "chat", str(tmp_path), "--max-new-tokens", "900000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}
    child = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", timeout=90, cwd=tmp_path)
    child.delaybeforesend = None
    child.expect("an empty line ends")
    child.expect(PROMPT)
    yield child
    child.close(force=True)


def test_a_conversation_with_commands(chat: pexpect.spawn, tiny: Tiny, tmp_path: Path) -> None:
    def say(line: str, wanted: str) -> None:
        chat.sendline(line)
        chat.expect(wanted)
        chat.expect(PROMPT)

    say("/image /nowhere.png", "Error: /nowhere.png: no such image file")
    say(f"/image {tiny.recipe}", "cannot decode this image")
    say("/dance", "is no command")
    say(f"/image {tiny.folder / 'images' / 'red.png'}", "comes with the next question")
    chat.sendline("What colour is it?")
    chat.expect_exact("What colour is it?\r\n")
    chat.expect(r"\S+")  # the answer has begun
    chat.sendintr()
    chat.expect("…")
    chat.expect(PROMPT)
    say("/save said.jsonl", "Saved to said.jsonl")
    said = json.loads((tmp_path / "said.jsonl").read_text())
    assert [message["role"] for message in said["messages"]] == ["user", "assistant"]
    assert said["messages"][0]["content"] == "<image>\nWhat colour is it?"
    assert said["images"] == [str(tiny.folder / "images" / "red.png")]
    say("/save /nowhere/said.jsonl", "No such file")
    say("/clear", "Cleared")
    say("/save empty.jsonl", "Saved")
    assert json.loads((tmp_path / "empty.jsonl").read_text()) == {"messages": [], "images": []}
    chat.sendline("")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def test_ctrl_c_at_the_prompt_ends_it(chat: pexpect.spawn) -> None:
    # One that comes just before the terminal is read is heard only with the next key, or the next Ctrl-C.
    for _ in range(9):
        chat.sendintr()
        if chat.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=10) == 1:
            break
    chat.close()
    assert chat.exitstatus == 0
