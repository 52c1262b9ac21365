"""A tokenizer made ready for images, or trained from scratch."""

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe_llava.data.conversation import IMAGE_TOKEN

PAD_TOKEN = "<pad>"
EOS_TOKEN = "</s>"


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, image_token: str = IMAGE_TOKEN) -> int:
    """Add, in place, the image token and a pad token of its own; return the number of tokens added.

    A pad token equal to the end mark is replaced: whoever masks padding in labels would also mask the end mark,
    and the model would never learn to stop. Resize the model's embeddings if the number is not zero.
    """
    size = len(tokenizer)
    marker = AddedToken(image_token, normalized=False, special=True)
    tokenizer.add_special_tokens({"extra_special_tokens": [marker]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return len(tokenizer) - size


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`; any text can be encoded, and decoding gives it back exactly.

    Special tokens: `<pad>` 0, `</s>` 1 (the end mark), `<image>` 2. No token is put in front of a text.

    Args:
        texts: what to learn merges from.
        vocab_size: tokens in all; fewer come out if the texts have no more pairs to merge.

    Raises:
        ValueError: if `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    special_tokens = [PAD_TOKEN, EOS_TOKEN, IMAGE_TOKEN]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is too small; give at least {smallest} (256 bytes + special tokens)")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        extra_special_tokens=[IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
    )
