"""Streams the records of a JSON file, each with its line: an array's elements, or one value after another.

The standard library's decoder works on a sliding window of the file: it is fast, and unlike event parsers it says
where a value begins and where it breaks, so that every error can name a line. Memory is bounded by the largest record
(at most ``MAX_RECORD_CHARACTERS``) and not by the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rag_tuned_memory.errors import InvalidInput, InvalidRecord

MAX_RECORD_CHARACTERS = 256 * 1024 * 1024
_CHUNK = 1024 * 1024
_SPACE = re.compile(r"[ \t\r\n]*")
# With "surrogateescape" a byte that is not UTF-8 becomes one of these, so that one bad byte costs one record.
_BAD_BYTE = re.compile("[\udc80-\udcff]")
# The longest token that a window's end can cut without the decoder pointing at the end itself ("-Infinity", "\\u12").
_LONGEST_CUT = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its decoded value, or the error that says why there is none. ``line`` is 1-based."""

    line: int
    value: Any = None
    error: InvalidRecord | None = None


def read_records(path: Path) -> Iterator[Record]:
    """The records of ``path`` in order, as a stream.

    A file that begins with ``[`` is an array of records, unless its first element is a chat message (an object with
    ``role``): then that array is itself a record. Any other file is a sequence of records, one a line (JSONL) or
    pretty-printed. Blank lines, CRLF and a UTF-8 byte order mark are fine; an empty file has no records.

    A bad record is yielded as one with ``error``, and reading goes on behind it: at the next element, or in a sequence
    at the next line. Duplicate keys, NaN, infinity and numbers out of range are errors, as is invalid UTF-8.

    Raises:
        InvalidRecord: an array with a syntax error, since nothing behind it can be told apart.
        InvalidInput: the file cannot be opened.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", place=str(path)) from error
    with file:
        yield from _Reader(path, file).records()


def loads(text: str) -> Any:
    """``json.loads`` with the rules of ``read_records``. Raises ValueError."""
    decoder = _StrictDecoder()
    value = decoder.decode(text)
    if decoder.complaints:
        raise ValueError(decoder.complaints[0])
    return value


class _StrictDecoder(json.JSONDecoder):
    """Notes what JSON allows but data should not hold; the value is still decoded, so that its end is known."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            self.complaints.append(f"the key {repeated!r} occurs twice in one object")
        return value

    def _constant(self, name: str) -> None:
        self.complaints.append(f"{name} is not JSON")

    def _float(self, digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            self.complaints.append(f"the number {digits[:40]} is out of range")
        return value


class _SyntaxFault(Exception):
    """The text at ``position`` of the window is not JSON."""

    def __init__(self, message: str, position: int) -> None:
        self.message = message
        self.position = position
        super().__init__(message)


class _Reader:
    """A window (``text``) over the decoded file; ``at`` is where reading goes on, ``line`` the line of ``at``."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.bytes_to_text = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.decoder = _StrictDecoder()
        self.text = ""
        self.at = 0
        self.line = 1
        self.ended = False

    def records(self) -> Iterator[Record]:
        first = self._next_character()
        if first == "[":
            self._advance(self.at + 1)
            if self._next_character() == "]":
                self._advance(self.at + 1)
                self._expect_end()
                return iter(())
            if not self._at_message():
                return self._array()
            self._rewind()
        return self._sequence()

    def _array(self) -> Iterator[Record]:
        while True:
            if self._next_character() == "":
                raise self._error("the array does not end: the file is cut off")
            line = self.line
            try:
                value, end = self._decode()
            except _SyntaxFault as fault:
                raise self._syntax_error(fault, "the rest of the array cannot be read") from fault
            yield self._record(line, value, end)
            self._advance(end)
            separator = self._next_character()
            if separator == "]":
                self._advance(self.at + 1)
                self._expect_end()
                return
            if separator != ",":
                raise self._error("the array does not end: the file is cut off" if separator == "" else "expected ','")
            self._advance(self.at + 1)

    def _sequence(self) -> Iterator[Record]:
        while self._next_character() != "":
            line = self.line
            try:
                value, end = self._decode()
            except _SyntaxFault as fault:
                yield Record(line, error=self._syntax_error(fault, line=line))
                self._skip_line()
                continue
            yield self._record(line, value, end)
            self._advance(end)

    def _expect_end(self) -> None:
        if self._next_character() != "":
            raise self._error("text after the end of the array")

    def _record(self, line: int, value: Any, end: int) -> Record:
        bad = _BAD_BYTE.search(self.text, self.at, end)
        if bad:
            at = line + self.text.count("\n", self.at, bad.start())
            return Record(line, error=self._error("invalid UTF-8", line=at, remedy="Save the file as UTF-8."))
        if self.decoder.complaints:
            return Record(line, error=self._error(self.decoder.complaints[0], line=line))
        return Record(line, value)

    def _at_message(self) -> bool:
        """Whether the array's first element, which is not consumed, is a chat message."""
        try:
            value, _ = self._decode()
        except _SyntaxFault:
            return False
        return isinstance(value, dict) and "role" in value

    def _decode(self) -> tuple[Any, int]:
        """The value at ``at`` and its end in the window, which grows until the value is whole."""
        while True:
            self.decoder.complaints.clear()
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _LONGEST_CUT
                if cut and self._read_more():
                    continue
                raise _SyntaxFault(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise _SyntaxFault(reason, self.at) from None
            # A number at the window's end may go on behind it.
            if end == len(self.text) and not isinstance(value, dict | list) and self._read_more():
                continue
            return value, end

    def _read_more(self) -> bool:
        """Lengthen the window, at least doubling what is unread; False at the end of the file or a record too large."""
        unread = len(self.text) - self.at
        if self.ended or unread > MAX_RECORD_CHARACTERS:
            return False
        data = self.file.read(max(_CHUNK, unread))
        self.ended = not data
        self.text += self.bytes_to_text.decode(data, final=self.ended)
        return not self.ended

    def _next_character(self) -> str:
        """The next character that is not a space, without consuming it; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self._advance(space.end() if space else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_more():
                return ""

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.at, position)
        self.at = position
        if self.at > _CHUNK:
            self.text = self.text[self.at :]
            self.at = 0

    def _skip_line(self) -> None:
        while True:
            newline = self.text.find("\n", self.at)
            if newline >= 0:
                return self._advance(newline + 1)
            self._advance(len(self.text))
            if not self._read_more():
                return None

    def _rewind(self) -> None:
        self.file.seek(0)
        self.bytes_to_text.reset()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def _syntax_error(self, fault: _SyntaxFault, remedy: str | None = None, line: int | None = None) -> InvalidRecord:
        """At the fault's own line, or at ``line``, where the record begins, with the fault's line in the message."""
        at = self.line + self.text.count("\n", self.at, fault.position)
        column = fault.position - self.text.rfind("\n", 0, fault.position)
        where = f"line {at}, column {column}" if line not in (None, at) else f"column {column}"
        if len(self.text) - self.at > MAX_RECORD_CHARACTERS:
            return self._error(f"the record has more than {MAX_RECORD_CHARACTERS:,} characters", line=line or self.line)
        if _BAD_BYTE.search(self.text, fault.position, fault.position + 1):
            return self._error("invalid UTF-8", line=line or at, remedy="Save the file as UTF-8.")
        message = f"not JSON: {fault.message} ({where})"
        return self._error(f"{message}; {remedy}" if remedy else message, line=line or at)

    def _error(self, message: str, *, line: int | None = None, remedy: str | None = None) -> InvalidRecord:
        return InvalidRecord(message, path=str(self.path), line=line or self.line, remedy=remedy)
