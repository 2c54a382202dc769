"""The text of a row while tokens are generated: complete characters only, cut at the first stop string."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxseq._decoding import Drafts


class NewTokens(NamedTuple):
    """The new tokens of one row since the last step. `tokens` and `text` leave out stop ids and stop strings."""

    row: int  # index of the prompt
    tokens: list[int]
    text: str  # complete characters only; "" without a tokenizer
    end: str  # "": not finished; "stop": a stop id or string; "length": max_tokens
    drafts: Drafts | None = None  # where a row ends, if a draft model proposed its tokens


class Row:
    """The text of a row so far; a possible beginning of a stop string is held back."""

    def __init__(self, number: int, tokenizer: Any, stop_ids: set[int], stop_strings: Sequence[str], prompt: Sequence[int] = ()):
        self.number, self.stop_ids, self.stop_strings = number, stop_ids, stop_strings
        self.stream = tokenizer.stream(prompt) if tokenizer else None
        self.tokens: list[int] = []
        self.starts: list[int] = []  # where in the text each token begins
        self.text, self.end = "", ""
        self.sent_tokens = self.sent_text = 0

    def push(self, token: int) -> None:
        if token in self.stop_ids:
            return self.finish("stop")
        self.tokens.append(token)
        self.starts.append(len(self.text))
        if self.stream:
            self._extend(self.stream.push(token))

    def finish(self, end: str) -> None:
        """Ends the row. An incomplete character is dropped if the length limit caused it, and shown as such if the model did."""
        if self.stream:
            text = self.stream.finish()
            self._extend(text.rstrip("\ufffd") if end == "length" else text)
        self.end = self.end or end

    def _extend(self, text: str) -> None:
        """Appends text. It ends before the stop string that is complete first, the longest if there are several."""
        self.text += text
        found = [(self.text.find(stop, self.sent_text), stop) for stop in self.stop_strings]
        if hits := [(start + len(stop), start) for start, stop in found if start >= 0]:
            cut = min(hits)[1]
            self.text, self.end = self.text[:cut], "stop"
            kept = sum(start < cut for start in self.starts)
            del self.tokens[kept:], self.starts[kept:]

    def take(self) -> NewTokens:
        """The part that can no longer change and has not been returned yet."""
        text, tokens = len(self.text), len(self.tokens)
        if not self.end and self.stop_strings:
            text -= held_back(self.text[self.sent_text :], self.stop_strings)
            tokens = sum(start < text for start in self.starts)
        piece = NewTokens(self.number, self.tokens[self.sent_tokens : tokens], self.text[self.sent_text : text], self.end)
        self.sent_tokens, self.sent_text = tokens, text
        return piece


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a prefix of a stop string."""
    longest = min(len(text), max(map(len, stops)) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in stops)), 0)
