"""From token ids to text as it grows: whole characters only, and never past a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_tuned_memory.serving.stopping import StopStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextStream:
    """The text of one answer, token by token.

    ``push`` and ``finish`` give what may be shown; joined, that is the answer's text. A character whose bytes are
    spread over several tokens comes with the last of them, and text that may be the beginning of a stop string is
    held back until that is decided.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._raw = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = StopStrings(stop)
        self._ids: list[int] = []
        self._decoded = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string came; nothing is to be pushed after it."""
        return self._stop.found

    def push(self, token_id: int) -> tuple[str, str]:
        """Take one token; returns the text that it completed and the text that may be shown now."""
        self._ids.append(token_id)
        piece = self._stream.step(self._raw, token_id) or ""
        self._decoded += len(piece)
        return piece, self._stop.push(piece)

    def finish(self) -> tuple[str, str]:
        """The end came: returns the rest in the same form as ``push``.

        Bytes that never became a character are shown as U+FFFD.
        """
        if self.stopped:
            return "", ""
        piece = self._raw.decode(self._ids, skip_special_tokens=True)[self._decoded :]
        return piece, self._stop.push(piece) + self._stop.finish()


class TokenTexts:
    """The text that each token of an answer adds, special tokens included, as TGI's server tells it.

    A token is decoded together with those before it, the prompt's last ones too, because some tokenizers write a
    token otherwise at the beginning of a text. While a character is incomplete, its tokens add nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: tuple[int, ...]) -> None:
        self._raw = tokenizer.backend_tokenizer
        self._special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ids = list(prompt)
        self._prompt = len(prompt)
        self._from, self._told = max(len(prompt) - 5, 0), len(prompt)
        self._text = ""

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that it completed."""
        self._ids.append(token_id)
        before, now = self._decoded(self._from, self._told), self._decoded(self._from, None)
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._from, self._told = self._told, len(self._ids)
        added = now[len(before) :]
        self._text += added
        return added

    def answer(self) -> str:
        """The answer without special tokens; empty where it ends inside a character."""
        before = self._decoded(self._prompt - 1, self._prompt, skip_special=True)
        whole = self._decoded(self._prompt - 1, None, skip_special=True)
        return "" if whole.endswith("\ufffd") else whole[len(before) :]

    def ends_with(self, stop: tuple[str, ...]) -> bool:
        """Whether the text so far ends with one of these strings, a line break after it not counted."""
        return any(self._text.endswith((one, one + "\n")) for one in stop)

    def of(self, token_id: int) -> str:
        """A token by itself."""
        return str(self._raw.decode([token_id], skip_special_tokens=False))

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token."""
        return token_id in self._special

    def _decoded(self, start: int, end: int | None, *, skip_special: bool = False) -> str:
        return str(self._raw.decode(self._ids[max(start, 0) : end], skip_special_tokens=skip_special))
