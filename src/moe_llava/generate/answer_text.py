"""Tokens of an answer -> the pieces of text that may be shown, as they come."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """The text of one answer while it grows. The pieces, joined, are the whole without white space around it.

    Held back are half a character, white space that may turn out to be the end, and what may become a stop string.

    Args:
        stop: strings before which the answer ends.

    Attributes:
        text: what was handed out.
        stopped: whether a stop string came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._settled = ""
        self._tokens = 0  # of which `_settled` is the text
        self._before = 0  # where the settled tokens begin with which the next are decoded
        self.text = ""
        self.stopped = False

    def take(self, tokens: Sequence[int], *, ended: bool) -> str:
        """What can be shown more, given all tokens so far."""
        written = self._settle(tokens, ended).lstrip()
        at = min((place for stop in self._stop if (place := written.find(stop)) >= 0), default=None)
        if at is not None:
            self.stopped = True
            shown = written[:at].rstrip()
        elif ended:
            shown = written.rstrip()
        else:
            shown = written[: len(written) - self._undecided(written)].rstrip()
        piece = shown[len(self.text) :]
        self.text += piece
        return piece

    def _settle(self, tokens: Sequence[int], ended: bool) -> str:
        """The text so far; the last settled tokens are decoded again, since how a token reads hangs on its left."""
        old = self._decode(tokens[self._before : self._tokens])
        new = self._decode(tokens[self._before :])
        if len(new) > len(old) and (ended or not new.endswith(HALF_A_CHARACTER)):
            self._settled += new[len(old) :]
            self._before, self._tokens = self._tokens, len(tokens)
        return self._settled

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _undecided(self, written: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        ends = range(min(longest, len(written)), 0, -1)
        return next((length for length in ends if any(stop.startswith(written[-length:]) for stop in self._stop)), 0)
