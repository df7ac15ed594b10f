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
