"""From chat messages to token ids: one rendering for training and for serving.

A model only recalls what it learnt when it is asked in the form that it was trained in, so both sides call
``render``. Text of messages can never become a control token: ``<|im_start|>`` inside a user's text is encoded as the
ordinary characters that it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")
_PRIVATE_USE = range(0xE000, 0xF900)


_INVISIBLE = "\u200b"
"""Breaks a special token's text where only text can be sent: a zero-width space."""


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = True
) -> list[int]:
    """Token ids of the messages in the tokenizer's chat template, ending where the assistant begins to answer.

    Where no content holds a special token's text, these are the ids that ``apply_chat_template`` gives.

    Raises:
        InvalidInput: no messages, an unknown role, text that is no valid UTF-8, or a model without chat template.
    """
    return [one for _, ids in render_pieces(tokenizer, messages, generation_prompt=generation_prompt) for one in ids]


def render_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, generation_prompt: bool = True
) -> list[tuple[str, list[int]]]:
    """As ``render``: the templated text in the pieces that are tokenised by themselves, each with its token ids."""
    mark = _unused_character(message.content for message in messages)
    pieces = _templated(tokenizer, messages, mark, generation_prompt).split(mark)
    return [(piece, _encode_pieces(tokenizer, [piece])) for piece in pieces]


def render_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """As ``render``, as text for a server that tokenises by itself, and adds the beginning-of-text token itself.

    A special token's text inside a message is broken by a zero-width space: the server would take it for the token.

    Raises:
        InvalidInput: as ``render``.
    """
    text = _templated(tokenizer, messages, _INVISIBLE, generation_prompt=True)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the text cannot be encoded as UTF-8: {error}") from error
    added = tokenizer("", add_special_tokens=True)["input_ids"]
    start = tokenizer.decode(added[:1]) if added and added[0] == tokenizer.bos_token_id else ""
    return text.removeprefix(start)


def _templated(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], mark: str, generation_prompt: bool
) -> str:
    """The messages in the chat template, with ``mark`` inside of every special token's text."""
    if not messages:
        raise InvalidInput("a prompt needs at least one message")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidInput(
                f"unknown role {message.role!r}: it must be one of {', '.join(ROLES)}", place=f"messages.{index}"
            )
    if not tokenizer.chat_template:
        raise InvalidInput("this model has no chat template", remedy="Use an instruction-tuned model.")
    broken = [{"role": m.role, "content": _break_special(tokenizer, m.content, mark)} for m in messages]
    return str(tokenizer.apply_chat_template(broken, tokenize=False, add_generation_prompt=generation_prompt))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of plain text, without special tokens, also where the text holds their names.

    Raises:
        InvalidInput: the text is no valid UTF-8.
    """
    mark = _unused_character([text])
    return _encode_pieces(tokenizer, _break_special(tokenizer, text, mark).split(mark))


def _unused_character(texts: Iterable[str]) -> str:
    """A private-use character that occurs in none of the texts."""
    used = set().union(*texts)
    return next(chr(code) for code in _PRIVATE_USE if chr(code) not in used)


def _break_special(tokenizer: PreTrainedTokenizerBase, text: str, mark: str) -> str:
    """Put ``mark`` after the first character of every special token's text, so that no piece holds a whole one."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not any(token in text for token in special):
        return text
    # A lookahead, because tokens can overlap: each place where one begins is broken, not every second.
    anywhere = "|".join(re.escape(token) for token in special)
    return re.sub(rf"(?=(?:{anywhere}))(.)", lambda match: match[1] + mark, text, flags=re.DOTALL)


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        try:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidInput(f"the text cannot be encoded as UTF-8: {error}") from error
    return ids
