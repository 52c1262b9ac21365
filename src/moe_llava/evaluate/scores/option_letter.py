"""Which option does a free answer choose? VLMEvalKit's rules (matching_util.py) without a judge model."""

import re
from collections.abc import Mapping

REFUSED = "Z"
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_STATED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_JUDGE_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def infer_option(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that `answer` chooses, "Z" for a refusal, None where no rule decides.

    Args:
        answer: what the model said.
        options: letter to text, only the options that the question has.
    """
    return _by_letter(answer, options) or _by_text(answer, options)


def _by_letter(answer: str, options: Mapping[str, str]) -> str | None:
    if _JUDGE_FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    words = answer.translate(_SEPARATORS).split()
    named = [letter for letter in options if letter in words]
    # Only the first time the letter stands there counts, so "A" as an article early in a long answer chooses nothing.
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    stated = _STATED.search(answer)
    return stated.group(1).upper() if stated and stated.group(1).upper() in options else None


def _by_text(answer: str, options: Mapping[str, str]) -> str | None:
    answer = answer.lower()
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    quoted = [letter for letter, text in options.items() if text.lower() in answer]
    return quoted[0] if len(quoted) == 1 else None
