"""Judges over the OpenAI protocol, against a local server that speaks it."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the judge extra is not installed")

from moe_llava.evaluate.judge import Judge, grade, official_prompt
from moe_llava.evaluate.scores import score

PROMPT = "Compare, please.\n\nQuestion | Truth | Prediction | Correctness\n"


class Server:
    """Answers `POST /v1/chat/completions` with `reply(request, number)`: text, or a status to fail with."""

    def __init__(self, reply: Callable[[dict[str, Any], int], str | int]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(request)
                    outer.keys.append(self.headers.get("Authorization"))
                    answer = reply(request, len(outer.requests))
                status, body = (answer, {"error": {"message": "no"}}) if isinstance(answer, int) else (200, {})
                if status == 200:
                    message = {"role": "assistant", "content": answer}
                    choice = {"index": 0, "finish_reason": "stop", "message": message}
                    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("MOE_LLAVA_JUDGE_KEY", "secret")
    servers: list[Server] = []

    def start(reply: Callable[[dict[str, Any], int], str | int]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def mmvet(tmp_path: Path) -> tuple[Path, Path]:
    """MM-Vet's files with three questions, and answers to them."""
    data, answers = tmp_path / "mm-vet", tmp_path / "out" / "predictions.jsonl"
    data.mkdir()
    answers.parent.mkdir()
    questions = {
        f"v1_{n}": {"question": f"What is {n}?", "answer": "a<AND>b<OR>c", "capability": ["rec"]} for n in range(3)
    }
    (data / "mm-vet.json").write_text(json.dumps(questions))
    (data / "mm-vet_evaluator.py").write_text(f"import openai\nprompt = {PROMPT!r}\n")
    rows = [{"question_id": n, "text": f"answer {n}"} for n in range(3)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return answers, data


def test_mmvet_is_graded_with_the_official_prompt_and_never_asked_twice(serve: Callable, mmvet: Any) -> None:
    server = serve(lambda request, number: "0.5" if "answer 1" in request["messages"][0]["content"] else "1.0 ok")
    judge = Judge(server.url, "grader", runs=2)
    grades = grade("mmvet", *mmvet, judge)
    assert score("mmvet", grades, mmvet[1]).figures["total"] == 83.3
    assert len(server.requests) == 6 and server.keys[0] == "Bearer secret"
    first = next(one for one in server.requests if "answer 0" in one["messages"][0]["content"])
    assert first["messages"][0]["content"] == PROMPT + "\nWhat is 0? | a <AND> b <OR> c | answer 0 | "
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("grader", 0.0, 3)
    assert grade("mmvet", *mmvet, judge) == grades
    assert len(server.requests) == 6


def test_a_grade_that_is_no_number_is_asked_again_warmer_and_ends_at_zero(serve: Callable, mmvet: Any) -> None:
    def reply(request: dict[str, Any], number: int) -> str:
        if "answer 0" in request["messages"][0]["content"]:
            return "0.7" if request["temperature"] == 0.5 else "Good"
        return "7.0" if "answer 1" in request["messages"][0]["content"] else "0.0"

    server = serve(reply)
    grades = json.loads(grade("mmvet", *mmvet, Judge(server.url, "g")).read_text())
    assert [grades[f"v1_{n}"]["score"] for n in range(3)] == [[0.7], [0.0], [0.0]]
    about_1 = [one for one in server.requests if "answer 1" in one["messages"][0]["content"]]
    assert [one["temperature"] for one in about_1] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert [one["messages"][0]["content"].endswith("(digit): ") for one in about_1] == [False, True, True, True, True]


def test_limits_and_faults_are_waited_for_and_a_stopped_grading_goes_on(serve: Callable, mmvet: Any) -> None:
    server = serve(lambda request, number: (429, 503)[number % 2] if number <= 4 else "1.0")
    assert score("mmvet", grade("mmvet", *mmvet, Judge(server.url, "g", workers=1)), mmvet[1]).figures["total"] == 100
    assert len(server.requests) == 7

    broken = serve(lambda request, number: "0.5" if number == 1 else 401)
    with pytest.raises(ValueError, match="does not answer .*answers so far are kept, run again"):
        grade("mmvet", *mmvet, Judge(broken.url, "other", workers=1))
    with answers_kept(mmvet[0]).open("a") as file:
        file.write('{"key": "cut off')
    mended = serve(lambda request, number: "0.5")
    grade("mmvet", *mmvet, Judge(mended.url, "other", workers=1))
    assert len(mended.requests) == 2
    grade("mmvet", *mmvet, Judge(mended.url, "other", workers=1))
    assert len(mended.requests) == 2


def answers_kept(predictions: Path) -> Path:
    return predictions.with_name("judge.jsonl")


@pytest.mark.parametrize("caption", [["A cat.", "On a mat."], "A cat.\nOn a mat."])
def test_llava_bench_is_reviewed_by_its_own_rules(serve: Callable, tmp_path: Path, caption: Any) -> None:
    data, answers = tmp_path / "bench", tmp_path / "out" / "predictions.jsonl"
    data.mkdir()
    answers.parent.mkdir()

    def lines(path: Path, rows: list[dict[str, Any]]) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    ids = range(2)
    lines(
        data / "questions.jsonl",
        [{"question_id": n, "image": "1.jpg", "text": f"Q{n}?", "category": "conv"} for n in ids],
    )
    lines(data / "context.jsonl", [{"image": "1.jpg", "caption": caption}])
    lines(data / "answers_gpt4.jsonl", [{"question_id": n, "text": f"reference {n}"} for n in ids])
    (data / "rule.json").write_text(json.dumps({"llava_bench_conv": {"role": "Assistant", "prompt": "Be fair."}}))
    lines(answers, [{"question_id": n, "text": f"ours {n}"} for n in ids])
    server = serve(lambda request, number: "Well.\n" if number == 1 else "8, 6\nBecause.")
    reviews = grade("llava_bench", answers, data, Judge(server.url, "g", workers=1))
    report = score("llava_bench", reviews, data)
    assert report.figures["relative"] == 75.0 and report.marks == {"0": 0.6, "1": 0.6}
    system, user = server.requests[0]["messages"]
    assert system["role"] == "system"
    assert user["content"] == (
        "[Context]\nA cat.\nOn a mat.\n\n[Question]\nQ0?\n\n[Assistant 1]\nreference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nours 0\n\n[End of Assistant 2]\n\n[System]\nBe fair.\n\n"
    )
    mute = serve(lambda request, number: "no numbers")
    with pytest.raises(ValueError, match="began none of 5 reviews with two numbers"):
        grade("llava_bench", answers, data, Judge(mute.url, "h", workers=1))


def test_the_prompt_is_read_from_the_official_script_without_running_it(tmp_path: Path) -> None:
    script = tmp_path / "mm-vet_evaluator.py"
    script.write_text('raise SystemExit\nprompt = """Two\nlines"""\n')
    assert official_prompt(script) == "Two\nlines"
    script.write_text("question = 1\n")
    with pytest.raises(ValueError, match="github.com/yuweihao/MM-Vet"):
        official_prompt(script)
