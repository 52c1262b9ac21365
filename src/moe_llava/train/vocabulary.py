"""A start for a projector's words: each is a caption, and a picture's patches are taught to say its own.

One layer of scores is fitted on the frozen tower's features, as a classifier of captions is, from the mean and spread
of a picture's patches; each word is the mean embedding of its caption's tokens, rare ones first. No decoder runs:
seconds instead of the hours that a decoder needs to find the names of things in a projector that starts from noise.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from moe_llava.data.conversation import Conversation, scan
from moe_llava.data.features import FeatureStore
from moe_llava.data.stream.sources import streams
from moe_llava.model import MoeLlavaForConditionalGeneration
from moe_llava.model.projector import VocabularyProjector, in_context
from moe_llava.recipe import Stage

_PASSES, _BATCH, _RATE = 30, 256, 2e-3
_UNUSED = -1e4  # score of a word without a caption
# Fitted scores times this: a picture that nobody trained on is then told as plainly as those of the fit, if not always
# rightly, and a decoder that learned to read the one can read the other.
SHARPNESS = 4.0


def captioned(stage: Stage) -> list[Conversation]:
    """The conversations of a stage that are one picture and what it is.

    Raises:
        ValueError: its data is streamed, so that its captions are not known beforehand.
    """
    if any(data.stream or streams(data.path) for data in stage.data):
        raise ValueError(
            "a projector with a vocabulary starts from the captions of its first stage: do not stream them."
        )
    read = (one for data in stage.data for one in scan(data.path, data.images)[0])
    return [one for one in read if len(one.images) == 1 and len(one.messages) == 2]


def start_words(
    model: MoeLlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[Conversation],
    store: FeatureStore,
    seed: int,
) -> float:
    """Give the words of a model's projector their start, in place.

    The most frequent captions become words, as many as there are; pictures with other captions are left out.

    Returns:
        The share of the pictures whose mean and spread score their own caption highest.

    Raises:
        ValueError: there are no captions.
    """
    projector = model.model.multi_modal_projector
    assert isinstance(projector, VocabularyProjector)
    texts = [one.messages[1].content.strip() for one in captions]
    kept = [text for text, _ in Counter(texts).most_common(projector.scores.out_features)]
    if not kept:
        raise ValueError("a projector's vocabulary starts from captions, and the first stage's data has none.")
    place = {text: index for index, text in enumerate(kept)}
    worded = [(one.images[0], place[text]) for one, text in zip(captions, texts, strict=True) if text in place]
    features = pooled(store, [image for image, _ in worded])
    labels = torch.tensor([label for _, label in worded])
    weight, bias, right = fit_scores(features, labels, len(kept), seed)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    with torch.no_grad():
        projector.scores.weight.zero_()
        projector.scores.bias.fill_(_UNUSED)
        projector.scores.weight[: len(kept)] = SHARPNESS * weight
        projector.scores.bias[: len(kept)] = SHARPNESS * bias
        projector.words.weight[:, : len(kept)] = mean_embeddings(tokenizer, kept, embeddings.weight).T
    return right


def pooled(store: FeatureStore, images: Sequence[str | Path]) -> Float[Tensor, "image scored"]:
    """What the scores see of each image, averaged over its patches: the mean of each channel, then the spread."""
    return torch.stack([in_context(store[image][None]).mean(dim=(0, 1)) for image in images])


def fit_scores(
    features: Float[Tensor, "image channel"],
    labels: Int[Tensor, " image"],
    words: int,
    seed: int,
    shrinkage: float = 0.3,
) -> tuple[Float[Tensor, "word channel"], Float[Tensor, " word"], float]:
    """Weight and bias of a linear classifier of the features as they come, and its accuracy on them.

    Args:
        shrinkage: of `within_whitening`; 1 leaves it out.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    standard = (features - mean) / spread
    whitening = within_whitening(standard, labels, words, shrinkage)
    white = standard @ whitening
    weight = torch.zeros(words, features.shape[1], requires_grad=True)
    bias = torch.zeros(words, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_RATE)
    steps = _PASSES * math.ceil(len(labels) / _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    for _ in range(_PASSES):
        for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(white[batch] @ weight.T + bias, labels[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = ((white @ weight.T + bias).argmax(dim=1) == labels).float().mean().item()
        scaled = weight @ whitening / spread
        return scaled, bias - scaled @ mean, right


def within_whitening(
    features: Float[Tensor, "image channel"], labels: Int[Tensor, " image"], words: int, shrinkage: float
) -> Float[Tensor, "channel channel"]:
    """Symmetric matrix that evens out how pictures of one word differ: what comes with a hand or an angle weighs less.

    The inverse square root of the covariance around each word's mean, shrunk towards the identity (Hatch et al., 2006,
    "Within-class covariance normalization for SVM-based speaker recognition"), scaled to keep the mean variance.
    """
    sums = torch.zeros(words, features.shape[1]).index_add_(0, labels, features)
    means = sums / torch.bincount(labels, minlength=words).clamp_min(1)[:, None]
    rest = features - means[labels]
    identity = torch.eye(features.shape[1])
    variances, axes = torch.linalg.eigh(torch.lerp(rest.T @ rest / len(labels), identity, shrinkage))
    return axes * (variances.mean() / variances).sqrt() @ axes.T


def mean_embeddings(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], embeddings: Float[Tensor, "vocabulary width"]
) -> Float[Tensor, "text width"]:
    """Mean embedding of each text's tokens, weighted by how few of the texts have them: articles hardly count."""
    encoded = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in texts]
    frequency = Counter(token for ids in encoded for token in set(ids))
    rows = []
    for ids in encoded:
        weights = torch.tensor([math.log((len(texts) + 1) / frequency[token]) for token in ids])
        rows.append((weights / weights.sum()) @ embeddings[ids].float())
    return torch.stack(rows)
