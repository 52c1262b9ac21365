"""A language model as judge: any OpenAI-compatible endpoint, each answer asked for once and kept on disk."""

import ast
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from moe_llava.evaluate.kept import keep, kept
from moe_llava.evaluate.scores.files import Row, locate, read_answers, read_json, read_jsonl
from moe_llava.evaluate.scores.ids import check_ids

KEY_VARIABLE = "MOE_LLAVA_JUDGE_KEY"
CACHE = "judge.jsonl"
TRIES = 5
MMVET_PROMPT = "mm-vet_evaluator.py"
# What the judge needs besides the questions, all of it official.
NEEDS = {"mmvet": (MMVET_PROMPT,), "llava_bench": ("context.jsonl", "answers_gpt4.jsonl", "rule.json")}
MMVET_NUDGE = "\nPredict the correctness of the answer (digit): "
REVIEWER = "You are a helpful and precise assistant for checking the quality of the answer."


@dataclass
class Judge:
    """An endpoint and a model.

    Attributes:
        url: the endpoint's base, such as `https://api.openai.com/v1`.
        runs: how often every answer is judged.
        retries: how often a request is repeated, with growing pauses, after a limit or a fault of the server.
        key: by default the environment variable `MOE_LLAVA_JUDGE_KEY`, else `OPENAI_API_KEY`.
    """

    url: str
    model: str
    runs: int = 1
    workers: int = 8
    retries: int = 8
    key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ValueError("a judge needs the OpenAI client: pip install 'moe-llava[judge]'") from error
        key = self.key or os.environ.get(KEY_VARIABLE) or os.environ.get("OPENAI_API_KEY") or "none"
        self._client = OpenAI(base_url=self.url, api_key=key, max_retries=self.retries)

    def facts(self) -> dict[str, Any]:
        """What `scores.json` says of the judge."""
        return {"url": self.url, "model": self.model, "runs": self.runs}

    def ask(self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int) -> str:
        """The judge's answer.

        Raises:
            ValueError: the endpoint refuses, or cannot be reached after all retries.
        """
        from openai import OpenAIError

        try:
            response = self._client.chat.completions.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=temperature,
                max_tokens=max_tokens,
            )
        except OpenAIError as error:
            raise ValueError(
                f"the judge {self.model} at {self.url} does not answer ({error}); answers so far are kept, run again"
            ) from error
        return response.choices[0].message.content or ""


class Remembered:
    """A judge whose answers are kept in a file, so that a stopped grading goes on and a finished one costs nothing."""

    def __init__(self, judge: Judge, cache: Path) -> None:
        self.judge = judge
        self._cache = cache
        self._lock = Lock()
        self._known = {row["key"]: row["answer"] for row in kept(cache)}

    def ask(self, messages: list[dict[str, str]], *, temperature: float, max_tokens: int, attempt: str) -> str:
        """As `Judge.ask`; `attempt` tells repetitions of one question apart."""
        facts = [self.judge.model, messages, temperature, max_tokens, attempt]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        if key not in self._known:
            answer = self.judge.ask(messages, temperature=temperature, max_tokens=max_tokens)
            with self._lock:
                keep(self._cache, {"key": key, "answer": answer})
                self._known[key] = answer
        return self._known[key]


def grade(name: str, predictions: Path, data: Path, judge: Judge) -> Path:
    """Let the judge grade an answer file of MM-Vet or LLaVA-Bench; return what `score` takes.

    Prompts and references come from the benchmark's own files in `data`.

    Raises:
        ValueError: a file is missing, a question has no answer, or the judge cannot be reached or understood.
    """
    remembered = Remembered(judge, predictions.with_name(CACHE))
    return {"mmvet": _grade_mmvet, "llava_bench": _review_llava_bench}[name](predictions, data, remembered)


def _grade_mmvet(predictions: Path, data: Path, judge: Remembered) -> Path:
    """MM-Vet's grade file: one number in 0..1 for each answer and run."""
    prompt = official_prompt(locate(data, MMVET_PROMPT))
    source = locate(data, "mm-vet.json")
    questions: dict[str, Any] = read_json(source)
    texts = {f"v1_{row['question_id']}": row["text"] for row in read_answers(predictions)}
    check_ids(texts, questions, predictions, source)

    def one(key: str) -> dict[str, list]:
        row = questions[key]
        truth = row["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        asked = prompt + "\n" + " | ".join([row["question"], truth, texts[key], ""])
        scores = [_number(judge, asked, run) for run in range(judge.judge.runs)]
        return {"model": [judge.judge.model] * len(scores), "score": scores}

    grades = dict(zip(questions, _each(one, list(questions), judge.judge, "MM-Vet"), strict=True))
    out = predictions.with_name("grades.json")
    out.write_text(json.dumps(grades, indent=2) + "\n", encoding="utf-8")
    return out


def _number(judge: Remembered, asked: str, run: int) -> float:
    """The first word as a number in 0..1: asked plainly, then with a nudge at rising temperature, then 0."""
    for attempt in range(TRIES):
        text = asked + MMVET_NUDGE if attempt else asked
        temperature = 0.5 * max(0, attempt - 1)
        answer = judge.ask(
            [{"role": "user", "content": text}], temperature=temperature, max_tokens=3, attempt=f"{run}/{attempt}"
        )
        try:
            number = float(answer.split(" ")[0].strip())
        except ValueError:
            continue
        if 0 <= number <= 1:
            return number
    return 0.0


def official_prompt(script: Path) -> str:
    """The text that MM-Vet's own script assigns to `prompt`; the script is read, not run.

    Raises:
        ValueError: there is none.
    """
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{script} is not Python ({error}); take it from github.com/yuweihao/MM-Vet") from error
    for node in tree.body:
        names = [at.id for at in node.targets if isinstance(at, ast.Name)] if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and "prompt" in names and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    raise ValueError(f"{script} assigns no text to `prompt`; take it from github.com/yuweihao/MM-Vet")


def _review_llava_bench(predictions: Path, data: Path, judge: Remembered) -> Path:
    """LLaVA-Bench's review files, one a run, in the folder `reviews`."""
    questions = read_jsonl(locate(data, "questions.jsonl"), "question_id", "image", "text", "category")
    contexts = {row["image"]: row["caption"] for row in read_jsonl(locate(data, "context.jsonl"), "image", "caption")}
    source = locate(data, "answers_gpt4.jsonl")
    references = {row["question_id"]: row["text"] for row in read_jsonl(source, "question_id", "text")}
    rules = read_json(locate(data, "rule.json"))
    texts = {row["question_id"]: row["text"] for row in read_answers(predictions)}
    for given, where in ((texts, predictions), (references, source)):
        check_ids(given, (row["question_id"] for row in questions), where, data / "questions.jsonl")
    folder = predictions.with_name("reviews")
    folder.mkdir(exist_ok=True)
    for run in range(judge.judge.runs):

        def one(row: Row, run: int = run) -> Row:
            rule = rules[f"llava_bench_{row['category']}"]
            asked = _review_prompt(row, contexts[row["image"]], rule, references[row["question_id"]], texts)
            content, pair = _two_numbers(judge, asked, run, f"question {row['question_id']}")
            category = f"llava_bench_{row['category']}"
            return {"question_id": row["question_id"], "category": category, "content": content, "tuple": pair}

        reviews = _each(one, questions, judge.judge, f"LLaVA-Bench {run + 1}/{judge.judge.runs}")
        text = "".join(json.dumps(review) + "\n" for review in reviews)
        (folder / f"run{run + 1}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _review_prompt(row: Row, caption: Any, rule: Row, reference: str, texts: dict[Any, str]) -> str:
    """The layout of LLaVA's eval_gpt_review_bench.py: context, question, both answers, the rule."""
    role = rule["role"]
    context = caption if isinstance(caption, str) else "\n".join(caption)
    parts = [("Context", context), ("Question", row["text"])]
    answers = [(f"{role} {n}", text) for n, text in enumerate((reference, texts[row["question_id"]]), start=1)]
    head = "".join(f"[{title}]\n{text}\n\n" for title, text in parts)
    body = "".join(f"[{title}]\n{text}\n\n[End of {title}]\n\n" for title, text in answers)
    return f"{head}{body}[System]\n{rule['prompt']}\n\n"


def _two_numbers(judge: Remembered, asked: str, run: int, place: str) -> tuple[str, list[float]]:
    """The review and the two numbers in its first line; a review without them is asked for again."""
    messages = [{"role": "system", "content": REVIEWER}, {"role": "user", "content": asked}]
    for attempt in range(TRIES):
        review = judge.ask(messages, temperature=0.2, max_tokens=1024, attempt=f"{run}/{attempt}")
        words = review.split("\n")[0].replace(",", " ").split()
        try:
            pair = [float(word) for word in words]
        except ValueError:
            continue
        if len(pair) == 2 and min(pair) >= 0:
            return review, pair
    raise ValueError(f"{place}: the judge began none of {TRIES} reviews with two numbers; choose another --judge-model")


def _each(work: Callable[[Any], Any], rows: list[Any], judge: Judge, title: str) -> list[Any]:
    with ThreadPoolExecutor(judge.workers) as pool:
        futures = [pool.submit(work, row) for row in rows]
        try:
            return [future.result() for future in tqdm(futures, desc=f"{title}, judging", unit="answer")]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
