"""VQA accuracy: how far an answer agrees with ten people (Antol et al. 2015, averaged over the ten subsets of nine)."""

from collections.abc import Sequence

from moe_llava.evaluate.scores.normalize import flatten, normalize_evalai, normalize_vqa


def agreement(answer: str, human_answers: Sequence[str]) -> float:
    """Return the mean over the people of `min(1, others who gave this answer / 3)`, in 0..1.

    With ten people and n matches that is 0, 0.3, 0.6, 0.9 for n = 0..3 and 1 from 4 on; it is not `min(1, n / 3)`.

    Raises:
        ValueError: there are no human answers.
    """
    if not human_answers:
        raise ValueError("a question has no human answers; use a split whose annotations are public")
    matches = sum(human == answer for human in human_answers)
    return sum(min(1.0, (matches - (human == answer)) / 3) for human in human_answers) / len(human_answers)


def vqa_eval_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Return the accuracy as vqaEval.py computes it: nothing is normalised where all people said the same.

    There even the case counts: "Off" against ten times "off" scores 0.
    """
    answer, people = flatten(answer), [flatten(human) for human in human_answers]
    if len(set(people)) > 1:
        answer, people = normalize_vqa(answer), [normalize_vqa(human) for human in people]
    return agreement(answer, people)


def m4c_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """Return the accuracy as m4c's TextVQAAccuracyEvaluator computes it: both sides always normalised."""
    return agreement(normalize_evalai(answer), [normalize_evalai(human) for human in human_answers])
