"""How well the words of the small real model are told in a hand that their scores were not fitted to.

python benchmarks/smol/words.py runs/smol/sparsify

Each drawing style of the training data is left out in turn; the test's own style is never looked at. Of the pictures
left out (as they are, not redrawn): how often the right word has the largest share of the mixture, and how large its
share is, as fitted and as sharp as the library makes it; and how large of the pictures that were fitted, as sharp.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from moe_llava.checkpoint.folder import load_model
from moe_llava.model.projector import in_context
from moe_llava.train.tower import image_features
from moe_llava.train.vocabulary import SHARPNESS, fit_scores

_HEAD = "| scores see | whitened | style left out | right word first | its share | sharpened | of the fit's own |"
_SHOWN = 1500  # pictures of the fit whose shares are averaged


def shares(
    scored: Float[Tensor, "image patch channel"], weight: Tensor, bias: Tensor, sharpness: float
) -> Float[Tensor, "image word"]:
    """Mixture of words of each picture, averaged over its patches."""
    return (sharpness * (scored @ weight.T + bias)).softmax(dim=-1).mean(dim=1)


def of_right(mixture: Float[Tensor, "image word"], labels: Int[Tensor, " image"]) -> float:
    """Mean share of the right word."""
    return mixture.gather(1, labels[:, None]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="by default `data` beside the model")
    options = parser.parse_args()
    data = options.data or options.model.parent / "data"
    captions = json.loads((data / "names.json").read_text())
    paths = [data / one["image"] for one in captions]
    texts = [one["conversations"][1]["value"] for one in captions]
    words = {text: index for index, text in enumerate(sorted(set(texts)))}
    labels = torch.tensor([words[text] for text in texts])
    folders = [Path(one["image"]).parts[1] for one in captions]
    styles = sorted({folder for folder in folders if not folder.endswith("-more")})
    model, processor = load_model(options.model)
    store = image_features(model, processor, paths, options.model.parent / "features")
    scored = torch.stack([in_context(store[path][None])[0] for path in paths])
    width = scored.shape[-1] // 2
    print(_HEAD + "\n|---|---|---|---|---|---|---|")
    for sees, end in (("mean", width), ("mean and spread", 2 * width)):
        for whitened in ("no", "yes"):
            for style in styles:
                known = torch.tensor([style not in folder for folder in folders])
                asked = torch.tensor([folder == style for folder in folders])
                averaged = scored[known, :, :end].mean(dim=1)
                plainly = {"shrinkage": 1.0} if whitened == "no" else {}
                weight, bias, _ = fit_scores(averaged, labels[known], len(words), seed=0, **plainly)
                plain, sharp = (shares(scored[asked, :, :end], weight, bias, times) for times in (1.0, SHARPNESS))
                own = shares(scored[known, :, :end][:_SHOWN], weight, bias, SHARPNESS)
                first = (sharp.argmax(dim=1) == labels[asked]).float().mean().item()
                figures = [first, of_right(plain, labels[asked]), of_right(sharp, labels[asked])]
                figures.append(of_right(own, labels[known][:_SHOWN]))
                row = (sees, whitened, style, *(f"{100 * one:.1f}" for one in figures))
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
