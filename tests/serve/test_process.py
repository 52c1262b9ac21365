"""The command in a process of its own: it warns, it serves, and on SIGTERM it ends without losing anyone."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from moe_llava.checkpoint.folder import save_model
from moe_llava.cli import main
from moe_llava.generate.engine import Engine
from tests.serve.conftest import asked, wait_for

# The command; but no token is written before a line comes in, so that the test decides what is still running when.
PROGRAM = """
import sys, threading
from moe_llava.cli import main
from moe_llava.serve.scheduler import Scheduler

step, let = Scheduler._step, threading.Event()
Scheduler._step = lambda self: (let.wait(), step(self))
threading.Thread(target=lambda: (sys.stdin.readline(), let.set()), daemon=True).start()
sys.exit(main())
"""


@pytest.fixture(scope="module")
def model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_model(folder, engine.model, engine.processor)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def server(model: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    port = free_port()
    arguments = ["serve", str(model), "--port", str(port), "--host", "0.0.0.0", "--model-name", "mine"]
    program = [sys.executable, "-c", PROGRAM, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(program, **pipes, text=True)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            return httpx.get(f"{url}/health", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    wait_for(answers)
    yield process, url
    process.kill()
    process.communicate()


def stopping(url: str) -> bool:
    return httpx.get(f"{url}/health", timeout=60).status_code == 503


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(server: tuple[subprocess.Popen, str]) -> None:
    process, url = server
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with client.chat.completions.create(model="mine", messages=asked("Hello"), max_tokens=40, stream=True) as stream:
        chunks = iter(stream)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: stopping(url))
        refused = httpx.post(f"{url}/v1/chat/completions", json={"messages": asked("Hi")}, timeout=60)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        wait_for(lambda: httpx.get(f"{url}/health", timeout=60).json()["running"] == 1)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends[-1] == "length"
    assert process.wait(90) == 0
    said = process.stdout.read() if process.stdout else ""
    assert "mine at http://0.0.0.0" in said
    assert "Warning: 0.0.0.0 is open to other machines" in said
    assert "Traceback" not in said


def test_a_second_signal_ends_it_at_once(server: tuple[subprocess.Popen, str]) -> None:
    process, url = server
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={"messages": asked("Hello"), "stream": True}, timeout=60
    ) as reply:
        pieces = reply.iter_bytes()  # kept: httpx hangs up when the iterator goes
        next(pieces)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: stopping(url))
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 1
    assert "Traceback" not in (process.stdout.read() if process.stdout else "")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["/nowhere"], "is not a checkpoint"),
        (["/nowhere", "--port", "99999"], "--port 99999"),
        (["/nowhere", "--max-batch", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 1
    assert words in capfd.readouterr().err


def test_a_port_in_use_is_one_sentence(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(model), "--port", str(taken.getsockname()[1])]) == 1
    assert "Choose another --port" in capfd.readouterr().err
