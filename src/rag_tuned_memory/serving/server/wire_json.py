"""Reading a JSON body into a shape, with the messages and places of serde_json, which TGI's router reports.

A reader goes through the bytes once, so that of several mistakes the first is reported. A shape is a function that
takes the reader and returns the value. Messages: https://docs.rs/serde_json (``Error``), recorded from a real server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

Shape = Callable[["Reader"], Any]

_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x1f]")
_MOST_DEPTH = 128
_REQUIRED = object()


class BadJson(Exception):
    """The body is no JSON (``syntax``), or of another shape. ``str()`` is serde's text with path, line and column."""

    def __init__(self, message: str, *, syntax: bool) -> None:
        self.syntax = syntax
        super().__init__(message)


class Reader:
    """A place in a JSON text."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.path: list[str] = []
        self._depth = 0

    def peek(self) -> bytes:
        """The next character that is no white space, not consumed; empty at the end."""
        while self.at < len(self.data) and self.data[self.at] in b" \t\r\n":
            self.at += 1
        return self.data[self.at : self.at + 1]

    def fail(self, message: str, *, at: int | None = None, syntax: bool = False) -> NoReturn:
        """Raise BadJson for a place, by default for what has been read so far."""
        before = self.data[: self.at if at is None else min(at, len(self.data))]
        line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1)
        path = "".join(self.path).removeprefix(".")
        where = f"{path}: " if path else ""
        raise BadJson(f"{where}{message} at line {line} column {column}", syntax=syntax)

    def wrong(self, message: str) -> NoReturn:
        """Raise BadJson for the next character."""
        self.fail(message, at=self.at + 1, syntax=True)

    def value(self) -> Any:
        """Any value."""
        start = self.peek()
        if not start:
            self.wrong("EOF while parsing a value")
        if start == b"{":
            return self.members(lambda key: self.value())
        if start == b"[":
            return self.items(lambda index: self.value())
        return self.scalar()

    def scalar(self) -> Any:
        """A string, number, boolean or null."""
        start = self.peek()
        if start == b'"':
            return self._string()
        if start == b"-" or start.isdigit():
            return self._number()
        for word, value in ((b"true", True), (b"false", False), (b"null", None)):
            if start == word[:1]:
                found = self.data[self.at : self.at + len(word)]
                if found != word:
                    ended = word.startswith(found)
                    self.wrong("EOF while parsing a value" if ended else "expected ident")
                self.at += len(word)
                return value
        return self.wrong("expected value" if start else "EOF while parsing a value")

    def members(self, read: Callable[[str], Any]) -> dict[str, Any]:
        """An object; ``read`` takes each member's value, whose key it is told."""
        self._enter()
        found: dict[str, Any] = {}
        first = True
        while (char := self.peek()) != b"}":
            if not char:
                self.wrong("EOF while parsing an object")
            if not first:
                if char != b",":
                    self.wrong("expected `,` or `}`")
                self.at += 1
                char = self.peek()
                if char != b'"':
                    self.wrong({b"": "EOF while parsing a value", b"}": "trailing comma"}.get(char, _NO_KEY))
            if char != b'"':
                self.wrong(_NO_KEY)
            key, first = self._string(), False
            if (colon := self.peek()) != b":":
                self.wrong("expected `:`" if colon else "EOF while parsing an object")
            self.at += 1
            self.path.append(f".{key}")
            found[key] = read(key)
            self.path.pop()
        self._leave()
        return found

    def items(self, read: Callable[[int], Any]) -> list[Any]:
        """An array; ``read`` takes each item, whose index it is told."""
        self._enter()
        found: list[Any] = []
        while (char := self.peek()) != b"]":
            if not char:
                self.wrong("EOF while parsing a list")
            if found:
                if char != b",":
                    self.wrong("expected `,` or `]`")
                self.at += 1
                char = self.peek()
                if char == b"]":
                    self.wrong("trailing comma")
                if not char:
                    self.wrong("EOF while parsing a value")
            self.path.append(f"[{len(found)}]")
            found.append(read(len(found)))
            self.path.pop()
        self._leave()
        return found

    def _enter(self) -> None:
        self.at += 1
        self._depth += 1
        if self._depth > _MOST_DEPTH - 1:
            self.fail("recursion limit exceeded", syntax=True)

    def _leave(self) -> None:
        self.at += 1
        self._depth -= 1

    def _string(self) -> str:
        match = _STRING.match(self.data, self.at)
        if match is None:
            self.fail("EOF while parsing a string", at=len(self.data), syntax=True)
        if control := _CONTROL.search(match[1]):
            place = self.at + 1 + control.start()
            self.fail("control character (\\u0000-\\u001F) found while parsing a string", at=place, syntax=True)
        self.at = match.end()
        try:
            text: str = json.loads(match[0].decode())
            text.encode()
        except UnicodeDecodeError:
            self.fail("invalid unicode code point", syntax=True)
        except UnicodeEncodeError:
            self.fail("lone leading surrogate in hex escape", syntax=True)
        except ValueError:
            self.fail("invalid escape", syntax=True)
        return text

    def _number(self) -> int | float:
        match = _NUMBER.match(self.data, self.at)
        after = self.data[match.end() : match.end() + 1] if match else b""
        if match is None or after.isdigit() or (after in (b".", b"e", b"E") and after):
            self.at += 1
            self.wrong("invalid number" if self.at < len(self.data) else "EOF while parsing a value")
        self.at = match.end()
        # As serde_json: what no 64 bits hold is a floating point number.
        if not (match[1] or match[2]) and len(match[0]) < 25:
            whole = int(match[0])
            if -(2**63) <= whole < 2**64:
                return whole
        number = float(match[0])
        if number in (float("inf"), float("-inf")):
            self.fail("number out of range", syntax=True)
        return number


_NO_KEY = "key must be a string"


def read(data: bytes, shape: Shape) -> Any:
    """The value of a whole text. Raises BadJson."""
    reader = Reader(data)
    value = shape(reader)
    if reader.peek():
        reader.wrong("trailing characters")
    return value


def _told(value: Any) -> str:
    """How serde names a value that it did not expect."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, str):
        return f"string {json.dumps(value, ensure_ascii=False)}"
    return f"integer `{value}`" if isinstance(value, int) else f"floating point `{value}`"


def _scalar(expected: str, take: Callable[[Any], bool]) -> Shape:
    def shape(reader: Reader) -> Any:
        start = reader.peek()
        if start in (b"{", b"["):
            reader.fail(f"invalid type: {'map' if start == b'{' else 'sequence'}, expected {expected}")
        value = reader.scalar()
        if not take(value):
            reader.fail(f"invalid type: {_told(value)}, expected {expected}")
        return value

    return shape


text = _scalar("a string", lambda value: isinstance(value, str))
boolean = _scalar("a boolean", lambda value: isinstance(value, bool))
number = _scalar("f32", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))


def integer(kind: str) -> Shape:
    """An integer of a Rust type: u32, u64, usize or i32."""
    bits = int(kind[1:]) if kind[1:].isdigit() else 64
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind[0] == "i" else (0, 2**bits)
    whole = _scalar(kind, lambda value: isinstance(value, int) and not isinstance(value, bool))

    def shape(reader: Reader) -> Any:
        value = whole(reader)
        if not least <= value < most:
            reader.fail(f"invalid value: integer `{value}`, expected {kind}")
        return value

    return shape


def anything(reader: Reader) -> Any:
    """Any value."""
    return reader.value()


def optional(shape: Shape) -> Shape:
    """None for null."""
    return lambda reader: reader.scalar() if reader.peek() == b"n" else shape(reader)


def sequence(shape: Shape) -> Shape:
    """A list."""

    def shaped(reader: Reader) -> Any:
        start = reader.peek()
        if start == b"[":
            return reader.items(lambda index: shape(reader))
        if start == b"{":
            reader.fail("invalid type: map, expected a sequence")
        return reader.fail(f"invalid type: {_told(reader.scalar())}, expected a sequence")

    return shaped


def required(shape: Shape) -> tuple[Shape, Any]:
    """A member that must be there."""
    return shape, _REQUIRED


def struct(name: str, members: Mapping[str, Shape | tuple[Shape, Any]]) -> Shape:
    """A dict of those of the named members that are there; others are ignored. A list gives them in order."""
    shapes = {key: given[0] if isinstance(given, tuple) else given for key, given in members.items()}
    needed = [key for key, given in members.items() if isinstance(given, tuple)]

    def shape(reader: Reader) -> Any:
        start = reader.peek()
        if start == b"{":
            found = reader.members(lambda key: shapes.get(key, anything)(reader))
        elif start == b"[":
            keys = list(shapes)
            values = reader.items(lambda index: shapes[keys[index]](reader) if index < len(keys) else anything(reader))
            found = dict(zip(keys, values, strict=False))
        else:
            reader.fail(f"invalid type: {_told(reader.scalar())}, expected struct {name}")
        for key in needed:
            if key not in found:
                reader.fail(f"missing field `{key}`")
        return {key: found[key] for key in shapes if key in found}

    return shape


def tagged(variants: Mapping[str, Shape]) -> Shape:
    """An object with ``type`` and ``value``, where the type decides the value's shape; gives both."""
    names = ", ".join(f"`{name}`" for name in variants)

    def kind(reader: Reader) -> Any:
        found = text(reader)
        if found not in variants:
            reader.fail(f"unknown variant `{found}`, expected one of {names}")
        return found

    both = struct("GrammarType", {"type": required(kind), "value": required(anything)})

    def shape(reader: Reader) -> Any:
        found = both(reader)
        inner = Reader(json.dumps(found["value"], ensure_ascii=False).encode())
        inner.path = [*reader.path, ".value"]
        return found["type"], variants[found["type"]](inner)

    return shape
