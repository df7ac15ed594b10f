from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_tuned_memory.errors import InvalidInput, InvalidRecord
from rag_tuned_memory.formats import records
from rag_tuned_memory.formats.records import read_records

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
objects = st.dictionaries(st.sampled_from(["a", "b", "ä", "role_"]), json_values, max_size=4)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "records.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes) -> list[tuple[int, object]]:
    return [(r.line, str(r.error) if r.error else r.value) for r in read_records(write(folder, content))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    values=st.lists(objects, max_size=6),
    chunk=st.sampled_from([1, 2, 3, 7, 64, 1024]),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    array=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_reads_what_json_reads_wherever_the_window_cuts(
    tmp_path: Path, values: list, chunk: int, indent: int | None, ascii_only: bool, array: bool, newline: str
) -> None:
    def dump(value: object) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    text = dump(values) if array else "\n".join(map(dump, values))
    path = write(tmp_path, text.replace("\n", newline))
    original = records._CHUNK
    records._CHUNK = chunk
    try:
        assert [r.value for r in read_records(path)] == values
    finally:
        records._CHUNK = original


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_an_arrays_elements_have_the_line_they_begin_on(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_CHUNK", chunk)
    text = '\n[\r\n {"a": 1},\n\n {\n"a": 2\n}\n,{"a": 3} , 4\n]\n'
    assert read(tmp_path, text) == [(3, {"a": 1}), (5, {"a": 2}), (8, {"a": 3}), (8, 4)]


@pytest.mark.parametrize("chunk", [1, 9, 1024])
def test_a_syntax_error_in_an_array_names_its_line_and_stops(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_CHUNK", chunk)
    path = write(tmp_path, '[\n{"a": 1},\n{"a": 2,\n "b": nope},\n{"a": 3}\n]')
    stream = read_records(path)
    assert next(stream).value == {"a": 1}
    with pytest.raises(InvalidRecord, match=r"records\.json:4: not JSON: Expecting value \(column 7\)") as caught:
        next(stream)
    assert caught.value.line == 4


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[\n{"a": 1}\n{"a": 2}]', 3, "expected ','"),
        ('[\n{"a": 1},\n', 3, "cut off"),
        ('[\n{"a": 1}\n', 3, "cut off"),
        ('[\n{"a": 1},\n{"a": "b', 3, "Unterminated string"),
        ('[\n{"a": 1},\n]', 3, "Expecting value"),
        ('[{"a": 1}]\n\nrest', 3, "text after the end"),
        ("[]\n{}", 2, "text after the end"),
        ("[", 1, "cut off"),
    ],
)
def test_a_broken_array(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(InvalidRecord, match=message) as caught:
        list(read_records(write(tmp_path, text)))
    assert caught.value.line == line


@pytest.mark.parametrize(
    "bad", ["{", '{"a": 1,', '{"a": "b', '{"a": 1, "b"', '{"a": 1} x', "nope", "}", '{"a": \\}', "{'a': 1}", "[1,"]
)
def test_a_bad_line_costs_that_line_alone(tmp_path: Path, bad: str) -> None:
    found = read(tmp_path, f'{{"n": 1}}\n{{"n": 2}}\n{bad}\n{{"n": 4}}\n\n{{"n": 6}}\n')
    good = [value for _, value in found if isinstance(value, dict) and "n" in value]
    assert good == [{"n": 1}, {"n": 2}, {"n": 4}, {"n": 6}]
    errors = [(line, value) for line, value in found if isinstance(value, str)]
    assert [line for line, _ in errors] == [3]
    assert "records.json:3: not JSON" in errors[0][1]


def test_values_that_json_allows_but_data_should_not_hold(tmp_path: Path) -> None:
    text = '{"a": NaN}\n{"a": -Infinity}\n{"a": 1e999}\n{"a": 1, "b": 2, "a": 3}\n{"n": 1}\n'
    found = read(tmp_path, text)
    assert [line for line, _ in found] == [1, 2, 3, 4, 5]
    for (_, message), part in zip(
        found, ["NaN", "-Infinity", "1e999 is out of range", "'a' occurs twice"], strict=False
    ):
        assert part in str(message)
    assert found[4][1] == {"n": 1}


def test_invalid_utf8_names_the_line_of_the_byte_and_costs_one_record(tmp_path: Path) -> None:
    found = read(tmp_path, b'[{"a": 1},\n{"a": 2,\n"b": "caf\xe9"},\n{"a": "\xf0\x9f\x98\x80"}]')
    assert found[0] == (1, {"a": 1})
    assert "records.json:3: invalid UTF-8. Save the file as UTF-8." in str(found[1][1])
    assert found[2] == (4, {"a": "😀"})
    assert "invalid UTF-8" in str(read(tmp_path, '{"a": 1}'.encode("utf-16"))[0][1])


def test_byte_order_mark_blank_lines_and_emptiness(tmp_path: Path) -> None:
    assert read(tmp_path, b'\xef\xbb\xbf\r\n{"a": 1}\r\n\r\n  \r\n{"a": 2}') == [(2, {"a": 1}), (5, {"a": 2})]
    for nothing in (b"", b"\n \r\n", b"\xef\xbb\xbf", b"[]", b" [ \n ] \n"):
        assert read(tmp_path, nothing) == []


def test_a_list_of_messages_is_one_record(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert read(tmp_path, json.dumps(chat)) == [(1, chat)]
    assert read(tmp_path, f"\n{json.dumps(chat)}\n{json.dumps(chat[:1])}\n") == [(2, chat), (3, chat[:1])]
    assert read(tmp_path, json.dumps([chat, chat], indent=1))[1][1] == chat


def test_numbers_at_the_windows_end_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_CHUNK", 1)
    assert read(tmp_path, "[123456, -1.5e3, true]") == [(1, 123456), (1, -1500.0), (1, True)]


def test_too_deep_and_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(tmp_path, '{"a":' * 100_000 + "\n" + '{"n": 2}\n' + f'{{"a": {"9" * 5000}}}\n{{"n": 4}}\n')
    assert [line for line, _ in found] == [1, 2, 3, 4]
    assert "nested too deeply" in str(found[0][1])
    assert found[3][1] == {"n": 4}
    monkeypatch.setattr(records, "MAX_RECORD_CHARACTERS", 1000)
    monkeypatch.setattr(records, "_CHUNK", 100)
    found = read(tmp_path, f'{{"a": "{"x" * 5000}"}}\n{{"n": 2}}\n')
    assert "more than 1,000 characters" in str(found[0][1])
    assert found[1] == (2, {"n": 2})


@pytest.mark.parametrize("array", [True, False])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, array: bool) -> None:
    path = tmp_path / "large.json"
    row = json.dumps({"a": "x" * 2000})
    with path.open("w") as stream:
        stream.write("[" if array else "")
        for index in range(20_000):
            stream.write(("," if array and index else "") + row + ("" if array else "\n"))
        stream.write("]" if array else "")
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    try:
        assert sum(1 for record in read_records(path) if record.error is None) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.json: cannot be read: No such file"):
        list(read_records(tmp_path / "absent.json"))
