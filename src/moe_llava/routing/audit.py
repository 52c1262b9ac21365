"""Does the mixture do anything? Take away what it is made of, piece by piece, and see which answers change."""

from dataclasses import dataclass, field
from typing import Any

from moe_llava.generate.engine import Engine
from moe_llava.model.config import moe_layers
from moe_llava.model.upcycle import upcycle
from moe_llava.routing.compare import ALL, FEW, Difference, compare
from moe_llava.routing.intervene import measured, sparse_layers
from moe_llava.routing.nulls import NULLS
from moe_llava.routing.score import Sample, Scorer, Scores
from moe_llava.routing.similarity import Similarity, similarity

MARGIN = 0.01  # of accuracy: an effect that stays within is small
RESAMPLES = 10_000

NONE, NOT_FOUND, SMALL, EFFECT, TOO_FEW = "no effect", "no effect found", "small effect", "effect", "too few answers"


@dataclass(frozen=True)
class Test:
    """One thing taken away.

    Attributes:
        title: what was done.
        asks: the question it answers, in plain words.
        differences: split -> after minus before.
        skipped: why it could not be done; then there are no differences.
    """

    name: str
    title: str
    asks: str
    differences: dict[str, Difference] = field(default_factory=dict)
    skipped: str = ""

    @property
    def verdict(self) -> str:
        return "not possible" if self.skipped else verdict(self.differences[ALL])

    @property
    def flagged(self) -> bool:
        """Whether the answers change more than chance explains."""
        return self.verdict in (SMALL, EFFECT)

    @property
    def sentence(self) -> str:
        return self.skipped or sentence(self.differences[ALL])


@dataclass(frozen=True)
class Audit:
    """All tests of one model, its own scores, and how alike its experts are."""

    tests: list[Test]
    similarity: dict[int, Similarity]
    n: int
    confidence: float
    accuracy: float
    log_probability: float

    def __getitem__(self, name: str) -> Test:
        return next(test for test in self.tests if test.name == name)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "answer": answer(self),
            "n": self.n,
            "accuracy": self.accuracy,
            "log_probability": self.log_probability,
            "confidence_of_one_interval": self.confidence,
            "tests": {
                test.name: {
                    "title": test.title,
                    "verdict": test.verdict,
                    "sentence": test.sentence,
                    "differences": {name: one.as_dict() for name, one in test.differences.items()},
                }
                for test in self.tests
            },
            "similarity": {str(index): one.as_dict() for index, one in self.similarity.items()},
        }


def verdict(difference: Difference) -> str:
    """One of the verdicts; see `docs/audit.md` for what each means."""
    if difference.all_zero:
        return NONE
    nats, points = difference.log_probability, difference.accuracy
    if nats.groups < FEW:
        return TOO_FEW
    if points is None:
        return EFFECT if nats.excludes_zero else NOT_FOUND
    if points.excludes_zero and max(-points.low, points.high) >= MARGIN:
        return EFFECT
    return SMALL if nats.excludes_zero or points.excludes_zero else NOT_FOUND


def sentence(difference: Difference) -> str:
    """The verdict with its figures."""
    name, nats, points = verdict(difference), difference.log_probability, difference.accuracy
    if name == NONE:
        return f"No effect: exactly 0 on each of the {difference.n:,} answers."
    if name == TOO_FEW:
        return f"{nats.groups} independent answers are too few to tell: give at least {FEW}, better hundreds."
    accuracy = ""
    if points:
        mean, low, high = 100 * points.mean, 100 * points.low, 100 * points.high
        accuracy = f" Accuracy changes by {mean:+.2f} points ({low:+.2f} to {high:+.2f})."
    moved = f"{nats.mean:+.4f} nats an answer ({nats.low:+.4f} to {nats.high:+.4f})"
    start = {
        NOT_FOUND: "No effect found: what changes may be chance",
        SMALL: "A small effect: it shows in how likely the answers are, hardly in how many are right",
        EFFECT: "An effect: fewer answers are right" if points and points.mean < 0 else "An effect: it shows",
    }[name]
    return f"{start}; {moved}.{accuracy}"


def audit(engine: Engine, samples: list[Sample], dense: Engine | None = None, *, seed: int = 0) -> Audit:
    """Score a sparse model, then score it with each part of the mixture taken away.

    Args:
        dense: the dense twin, trained as long on the same data; the one test that tells whether a mixture was needed.

    Raises:
        ValueError: the model is dense, the twin is sparse or reads other tokens, or a sample does not fit.
    """
    layers = sparse_layers(engine.model)
    names = ["dense"] * (dense is not None) + list(NULLS)
    # Together 95 %: each of the verdicts looks at two intervals (Bonferroni).
    confidence = 1 - 0.05 / (2 * len(names))
    twin = _as_mixture_of_one(dense, engine, tuple(layers)) if dense is not None else None
    scorer = Scorer(engine, samples)
    with measured(engine.model):
        before = scorer.score("as trained")
        tests = []
        for name in names:
            if name == "dense":
                assert twin is not None
                title, asks = "replaced by its dense twin", "Would a dense model have done as well?"
                tests.append(
                    Test(name, title, asks, _compare(before, _score_twin(twin, samples), samples, confidence, seed))
                )
            else:
                tests.append(_null_test(scorer, name, before, confidence, seed))
    assert before.right is not None
    return Audit(
        tests=tests,
        similarity=similarity(scorer),
        n=len(samples),
        confidence=confidence,
        accuracy=float(before.right.mean()),
        log_probability=float(before.log_probability.mean()),
    )


def _compare(
    before: Scores, after: Scores, samples: list[Sample], confidence: float, seed: int
) -> dict[str, Difference]:
    return compare(before, after, samples, confidence=confidence, resamples=RESAMPLES, seed=seed)


def _null_test(scorer: Scorer, name: str, before: Scores, confidence: float, seed: int) -> Test:
    title, asks, change = NULLS[name]
    text_config = scorer.engine.model.config.text_config
    if name == "runner_up" and text_config.num_experts == text_config.num_experts_per_tok:
        return Test(name, title, asks, skipped="Every expert is chosen for every token: there is no next best.")
    with change(seed)(scorer.engine.model):
        after = scorer.score(title)
    return Test(name, title, asks, _compare(before, after, scorer.samples, confidence, seed))


def _as_mixture_of_one(dense: Engine, engine: Engine, layers: tuple[int, ...]) -> Engine:
    """The twin with one expert a layer, so that both models run through the same arithmetic."""
    config = dense.model.config.text_config
    if moe_layers(config):
        raise ValueError(
            "--dense names a sparse model: give the dense twin, which was trained as long without experts."
        )
    if dense.processor.tokenizer.get_vocab() != engine.processor.tokenizer.get_vocab():
        raise ValueError("--dense reads other tokens than the model: the probabilities of answers cannot be compared.")
    placed = [index for index in layers if index < config.num_hidden_layers] or "all"
    model = upcycle(dense.model, num_experts=1, top_k=1, layers=placed)  # type: ignore[arg-type]
    model.generation_config = dense.model.generation_config
    model.to(dense.model.device)  # type: ignore[arg-type]
    return Engine(model, dense.processor)


def _score_twin(twin: Engine, samples: list[Sample]) -> Scores:
    with measured(twin.model):
        return Scorer(twin, samples).score("dense twin")


def answer(result: Audit) -> str:
    """The one question in plain words."""
    nulls = [test for test in result.tests if test.name != "dense" and not test.skipped]
    if all(test.verdict == NONE for test in nulls):
        first = (
            "No. The experts are one and the same to every answer: nothing that was done to them changed a single bit."
        )
    elif any(test.verdict == TOO_FEW for test in nulls):
        return "There are too few answers to tell."
    elif not any(test.flagged for test in nulls):
        first = "No effect was found: with one network in the place of the experts, or any router, it answers as well."
    else:
        strong = [test for test in nulls if test.verdict == EFFECT]
        worst = ", ".join(test.title for test in strong or nulls if test.flagged)
        first = f"Yes. Answers change with: {worst}." if strong else f"Barely. A small effect shows with: {worst}."
    return f"{first} {_about_twin(result)}"


def _about_twin(result: Audit) -> str:
    twin = next((test for test in result.tests if test.name == "dense"), None)
    if twin is None:
        return "Whether a dense model would do as well, only its dense twin (--dense) can tell."
    if not twin.flagged:
        return "Its dense twin does as well: no gain from the mixture was found."
    difference = twin.differences[ALL]
    points = difference.accuracy if difference.accuracy and difference.accuracy.excludes_zero else None
    sign = (points or difference.log_probability).mean
    much = "" if twin.verdict == EFFECT else "a little "
    if sign > 0:
        return f"Its dense twin does {much}better."
    return f"It does {much}better than its dense twin."
