"""The two answer normalisers of visual question answering, quirks included.

`normalize_vqa` is what VQA's evaluation code (GT-Vision-Lab/VQA, vqaEval.py) does to answers; `normalize_evalai` is the
m4c variant that TextVQA is scored with and that the original applies to its VQAv2 and VizWiz uploads. They are not
interchangeable: the second splits a possessive ("hershey's" becomes "hershey 's") and ignores commas.
"""

import re

ARTICLES = frozenset({"a", "an", "the"})
_COUNT = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_COUNT)}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# A word is corrected to one of these when it is short of exactly one of its apostrophes ("dont", "couldnt've").
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    form[:at] + form[at + 1 :]: form for form in _CONTRACTED.split() for at, letter in enumerate(form) if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Meant to spare decimals on both sides, the official pattern only looks ahead: ".5" keeps its point, "5." loses it.
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # officially a regex flag in the place of the count


def normalize_vqa(text: str) -> str:
    """Return an answer as vqaEval.py compares it: punctuation, number words, articles and contractions evened out."""
    return _even_words(_strip_punctuation(text))


def normalize_evalai(text: str) -> str:
    """Return an answer as m4c's EvalAIAnswerProcessor does: as `normalize_vqa` after tokenising."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize_vqa(flatten(text.strip()))


def flatten(text: str) -> str:
    """Return `text` on one line: newlines and tabs become spaces, outer white space goes."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    number_has_comma = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if touches_space or number_has_comma else " ")
    return _PERIOD.sub("", stripped, count=_MAX_PERIODS)


def _even_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
