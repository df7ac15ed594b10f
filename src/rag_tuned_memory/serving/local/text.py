"""From token ids to text as it grows: whole characters only, and never past a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        self._stop = stop
        self._ids: list[int] = []
        self._decoded = 0
        self._held = ""
        self.stopped = False
        """Whether a stop string came; nothing is to be pushed after it."""

    def push(self, token_id: int) -> tuple[str, str]:
        """Take one token; returns the text that it completed and the text that may be shown now."""
        self._ids.append(token_id)
        piece = self._stream.step(self._raw, token_id) or ""
        self._decoded += len(piece)
        return piece, self._release(piece)

    def finish(self) -> tuple[str, str]:
        """The end came: returns the rest in the same form as ``push``.

        Bytes that never became a character are shown as U+FFFD.
        """
        if self.stopped:
            return "", ""
        piece = self._raw.decode(self._ids, skip_special_tokens=True)[self._decoded :]
        shown = self._release(piece)
        if not self.stopped:
            shown, self._held = shown + self._held, ""
        return piece, shown

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
