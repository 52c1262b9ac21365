"""The small real model against what its frozen features tell alone, its language before and after, and a gallery.

python benchmarks/smol/report.py runs/smol/sparsify                   tables; answers are kept and gone on with
python benchmarks/smol/report.py runs/smol/sparsify --page docs/smol.md

Accuracies with their 95 % intervals, and the paired difference to each baseline on the same questions: bootstrap over
concepts (a concept's pictures are not independent). `--limit` asks about so many pictures only, for a first look.
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.smol import baselines
from benchmarks.smol.gallery import draw_gallery
from benchmarks.smol.language import PLAIN_QUESTIONS, before, perplexity, plain_answers
from benchmarks.smol.page import MEAN_PROBE, page

from moe_llava.evaluate.paired import Interval, paired_bootstrap
from moe_llava.evaluate.processes import Processes
from moe_llava.evaluate.questions import Question, is_right, read_questions
from moe_llava.evaluate.runner import Model, answer_task, task_of_questions
from moe_llava.generate.engine import Engine, Request
from moe_llava.train.folder import write_json
from moe_llava.train.tower import image_features
from moe_llava.train.vocabulary import pooled

SETS = ("unseen_style", "unseen_concept", "unseen_both")
TALK = ("What is this?", "Is it something to eat?", "Write one sentence about it.")
_TOKENS = 24


@dataclass(frozen=True)
class Answered:
    """Questions of one set with the answers of the model and of each baseline (`None` where it has none)."""

    questions: list[Question]
    answers: dict[str, list[str] | None]

    def marks(self, who: str, kind: str) -> list[float]:
        given = self.answers[who]
        assert given is not None
        pairs = zip(self.questions, given, strict=True)
        return [float(is_right(answer, one.accepted)) for one, answer in pairs if one.kind == kind]

    def concepts(self, kind: str) -> list[str]:
        return [one.image.stem for one in self.questions if one.kind == kind and one.image]


def ask(model: Path, data: Path, name: str, out: Path, limit: int | None) -> list[tuple[Question, str]]:
    """The model's answers to one set; those given before are kept."""
    questions = read_questions(data / f"test_{name}.jsonl")
    images = sorted({one.image for one in questions if one.image})
    if limit is not None:
        kept = set(random.Random(0).sample(images, min(limit, len(images))))
        questions = [one for one in questions if one.image in kept]
    task = task_of_questions(questions, Path(name), max_new_tokens=_TOKENS)
    texts, _ = answer_task(task, Model(model, Processes()), out / f"{name}.jsonl", Processes(), restart=True)
    return list(zip(questions, texts, strict=True))


class Baselines:
    """Nearest neighbour and linear probes, fitted on the pictures of stage I."""

    def __init__(self, engine: Engine, data: Path, work: Path) -> None:
        self._engine, self._work = engine, work
        captions = json.loads((data / "captions.json").read_text())
        paths = [data / one["image"] for one in captions]
        styles = [Path(one["image"]).parts[1].removesuffix("-more") for one in captions]
        texts = [one["conversations"][1]["value"] for one in captions]
        self._labels = {
            "name": [text.partition(":")[0] for text in texts],
            "category": [text.partition(": ")[2].partition(",")[0].removesuffix(".") for text in texts],
        }
        raw = self._features(paths)
        self._standard = baselines.Standard(raw)
        self._known = self._standard(raw)
        # Columns that each probe sees.
        self._probes = {"linear probe": slice(None), MEAN_PROBE: slice(raw.shape[1] // 2)}
        self.penalty = {
            probe: {
                kind: baselines.choose_penalty(self._known[:, seen], labels, styles)
                for kind, labels in self._labels.items()
            }
            for probe, seen in self._probes.items()
        }

    def _features(self, paths: list[Path]) -> torch.Tensor:
        store = image_features(self._engine.model, self._engine.processor, paths, self._work)
        return pooled(store, paths)

    def answers(self, questions: list[Question]) -> dict[str, list[str]]:
        """Answers of each baseline; to yes/no questions: yes if it gives the picture the name that is asked for."""
        images = sorted({one.image for one in questions if one.image})
        asked = self._standard(self._features(images))
        said: dict[str, dict[str, dict[Path, str]]] = {who: {} for who in ("nearest neighbour", *self._probes)}
        for kind, labels in self._labels.items():
            near = baselines.nearest(self._known, labels, asked)
            said["nearest neighbour"][kind] = dict(zip(images, near, strict=True))
            for probe, seen in self._probes.items():
                penalty = self.penalty[probe][kind]
                answers = baselines.linear_probe(self._known[:, seen], labels, asked[:, seen], penalty)
                said[probe][kind] = dict(zip(images, answers, strict=True))
        return {who: [_said(one, of) for one in questions] for who, of in said.items()}


def _said(question: Question, said: dict[str, dict[Path, str]]) -> str:
    assert question.image is not None
    if question.kind == "yes_no":
        named = said["name"][question.image].lower()
        asked = question.question.lower().removeprefix("is this ").removeprefix("are these ").removesuffix("?")
        return "yes" if named == asked else "no"
    return said[question.kind][question.image] if question.kind in said else ""


def f1(questions: list[Question], answers: list[str]) -> float:
    """Of "yes" among the yes/no questions."""
    pairs = [
        (is_right("yes", one.accepted), is_right(answer, ("yes",)))
        for one, answer in zip(questions, answers, strict=True)
        if one.kind == "yes_no"
    ]
    hits = sum(truth and said for truth, said in pairs)
    return 2 * hits / max(sum(truth for truth, _ in pairs) + sum(said for _, said in pairs), 1)


def table(answered: Answered, kind: str) -> dict[str, Any]:
    """Accuracy of each, with its interval, and the model's lead over each baseline."""
    groups = answered.concepts(kind)
    marks = {who: answered.marks(who, kind) for who in answered.answers}
    row: dict[str, Any] = {"n": len(groups)}
    for who, values in marks.items():
        row[who] = _interval(paired_bootstrap(values, groups=groups))
        if who != "model":
            lead = [own - other for own, other in zip(marks["model"], values, strict=True)]
            row[f"lead over {who}"] = _interval(paired_bootstrap(lead, groups=groups))
    if kind == "yes_no":
        row["f1"] = {who: f1(answered.questions, answers or []) for who, answers in answered.answers.items()}
    return row


def _interval(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def talk(engine: Engine, pictures: list[Path]) -> list[dict[str, Any]]:
    """The three questions about each picture, each asked alone."""
    requests = [
        Request(({"role": "user", "content": f"<image>\n{question}"},), (picture,))
        for picture in pictures
        for question in TALK
    ]
    texts = engine.answer(requests)
    return [
        {"picture": str(picture), "answers": texts[len(TALK) * place : len(TALK) * (place + 1)]}
        for place, picture in enumerate(pictures)
    ]


def speaks(engine: Engine, decoder: Path, text: str) -> dict[str, Any]:
    """Perplexity and plain answers before and after."""
    old = before(decoder)
    return {
        "perplexity": {"before": perplexity(old, text), "after": perplexity(engine, text)},
        "questions": list(PLAIN_QUESTIONS),
        "before": plain_answers(old),
        "after": plain_answers(engine),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="by default `data` beside the model")
    parser.add_argument("--limit", type=int, help="so many pictures of each set")
    parser.add_argument("--page", type=Path, help="write this page and its gallery")
    options = parser.parse_args()
    data = options.data or options.model.parent / "data"
    out = options.model.parent / "answers" / options.model.name
    asked = {name: ask(options.model, data, name, out, options.limit) for name in SETS}
    engine = Engine.load(options.model, dtype=torch.float32)
    known = Baselines(engine, data, options.model.parent / "features")
    report: dict[str, Any] = {"penalty": known.penalty, "sets": {}}
    for name, pairs in asked.items():
        questions = [question for question, _ in pairs]
        answered = Answered(questions, {"model": [text for _, text in pairs], **known.answers(questions)})
        kinds = dict.fromkeys(one.kind for one in questions)
        report["sets"][name] = {kind: table(answered, kind) for kind in kinds}
    report["language"] = speaks(engine, data / "decoder", (data / "held_out_text.txt").read_text())
    names = [(question, text) for question, text in asked["unseen_style"] if question.kind == "name"]
    chosen = random.Random(1).sample(names, min(18, len(names)))
    report["gallery"] = talk(engine, [question.image for question, _ in chosen if question.image])
    for entry, (question, _) in zip(report["gallery"], chosen, strict=True):
        entry |= {"name": question.accepted[0], "right": is_right(entry["answers"][0], question.accepted)}
    write_json(out / "report.json", report)
    text = page(report)
    if options.page:
        options.page.write_text(text)
        draw_gallery(report["gallery"], TALK, options.page.parent / "figures" / "smol.png")
    print(text)


if __name__ == "__main__":
    main()
