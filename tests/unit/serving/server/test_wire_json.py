"""The reader of bodies: what json reads, and serde_json's words for what it does not take."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_tuned_memory.serving.server import wire_json as w
from rag_tuned_memory.serving.server.shapes import CHAT, GENERATE

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_it_reads_what_json_reads(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert w.read(text.encode(), w.anything) == value


@given(VALUES, st.data())
def test_no_piece_of_json_and_no_noise_breaks_it(value: object, data: st.DataObject) -> None:
    text = json.dumps(value).encode()
    cut = text[: data.draw(st.integers(0, len(text)))] + data.draw(st.binary(max_size=3))
    for shape in (w.anything, GENERATE, CHAT):
        with contextlib.suppress(w.BadJson):
            w.read(cut, shape)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "EOF while parsing an object at line 1 column 1"),
        (b'{"inputs"', "EOF while parsing an object at line 1 column 9"),
        (b'{"inputs" "x"}', "expected `:` at line 1 column 11"),
        (b'{"inputs":"x" "y":1}', "expected `,` or `}` at line 1 column 15"),
        (b'{"inputs":"x",}', "trailing comma at line 1 column 15"),
        (b'{"inputs":"x"} 1', "trailing characters at line 1 column 16"),
        (
            b'{"inputs":"x\n"}',
            "inputs: control character (\\u0000-\\u001F) found while parsing a string at line 1 column",
        ),
        (b'{"inputs":"x', "inputs: EOF while parsing a string at line 1 column 12"),
        (b'{"inputs":"\\q"}', "inputs: invalid escape at line 1"),
        (b'{"inputs":"\\ud800"}', "inputs: lone leading surrogate in hex escape at line 1"),
        (b'{"inputs":"x","parameters":{"seed":01}}', "parameters.seed: invalid number at line 1"),
        (b'{"inputs":"x","parameters":{"top_p":1e999}}', "parameters.top_p: number out of range at line 1"),
        (
            b'{"inputs":"x","parameters":{"stop":[1,]}}',
            "parameters.stop[0]: invalid type: integer `1`, expected a string",
        ),
        (b'{"inputs":"x","parameters":{"stop":["a",]}}', "parameters.stop: trailing comma at line 1"),
        (b'{"inputs":"x","parameters":5}', "invalid type: integer `5`, expected struct GenerateParameters at line 1"),
        (b'{"inputs":tru}', "inputs: expected ident at line 1"),
        (b'\n\n{"inputs":1}', "inputs: invalid type: integer `1`, expected a string at line 3 column 11"),
        (b'{"inputs":"x","x":' + b"[" * 200, "recursion limit exceeded at line 1"),
        (b'{"inputs":"x","parameters":{"seed":18446744073709551616}}', "floating point `1.8446744073709552e+19`"),
        (
            b'{"inputs":"x","parameters":{"max_new_tokens":4294967296}}',
            "invalid value: integer `4294967296`, expected u32",
        ),
    ],
)
def test_mistakes_are_named_as_serde_json_names_them(body: bytes, message: str) -> None:
    with pytest.raises(w.BadJson) as caught:
        w.read(body, GENERATE)
    assert message in str(caught.value)


def test_the_number_of_digits_is_no_trap() -> None:
    with pytest.raises(w.BadJson):
        w.read(b'{"inputs":"x","parameters":{"seed":' + b"9" * 1_000_000 + b"}}", GENERATE)
