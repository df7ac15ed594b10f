"""The recorded requests of a real TGI, sent to this server: same status, same shape, same framing, same error text.

``DEPARTURES`` is the one list of recorded requests that are answered otherwise on purpose, each with its reason and
with what comes instead. ``docs/serve-model.md`` tells them to users, with the recordings that are no requests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from listening import listening
from wire_cases import FOLDER, case, events, send, shape, without_counts

from rag_tuned_memory.serving.server.service import Options
from rag_tuned_memory.serving.server.validate import Limits

REFUSED = "unknown adapter"
NO_TOOLS = "Tool error: this server calls no tools"

NOT_ANSWERED = (422, REFUSED, "an unknown adapter is never answered by the base model")
NOT_STREAMED = (200, REFUSED, "the same, as an event of the stream")
WITHOUT_TOOLS = (422, NO_TOOLS, "tools are out of its scope")
DEPARTURES: dict[str, tuple[int, str, str]] = {
    "gen_adapter_empty": NOT_ANSWERED,
    "gen_adapter_leading_space": NOT_ANSWERED,
    "gen_adapter_unknown": NOT_ANSWERED,
    "gen_adapter_upper_case": NOT_ANSWERED,
    "chat_model_empty": NOT_ANSWERED,
    "chat_model_unknown": NOT_ANSWERED,
    "cmpl_unknown": NOT_ANSWERED,
    "mix_patched_3_no-such-adapter": NOT_ANSWERED,
    "nolora_chat_model_ad1": NOT_ANSWERED,
    "nolora_generate_adapter_ad1": NOT_ANSWERED,
    "nolora_generate_stream_adapter_ad1": NOT_STREAMED,
    "stream_adapter_unknown": NOT_STREAMED,
    "chat_stream_unknown": NOT_STREAMED,
    "chat_tools_auto": WITHOUT_TOOLS,
    "chat_tools_cut": WITHOUT_TOOLS,
    "chat_tools_named": WITHOUT_TOOLS,
    "chat_tools_required": WITHOUT_TOOLS,
    "chat_tools_required_ad1": WITHOUT_TOOLS,
    "chat_tools_required_stream": WITHOUT_TOOLS,
    "chat_empty_messages": (422, "Template error", "chats are rendered as in training, which needs a message"),
    "gen_watermark": (422, "`watermark` is not supported", "nobody here reads watermarks"),
    "gen_grammar_bad_schema": (422, "grammar is not valid", "another library finds it, and says so in its own words"),
    "gen_grammar_bad_regex": (424, "invalid regex", "the reason is told; TGI leaves it out"),
    "bad_regex_during_stream": (424, "invalid regex", "the reason is told; TGI leaves it out"),
    "chat_bad_regex": (424, "invalid regex", "the reason is told; TGI leaves it out"),
    "stream_grammar_bad_regex": (200, "invalid regex", "the reason is told; TGI leaves it out"),
    "chat_stream_bad_regex": (200, "invalid regex", "the reason is told; TGI leaves it out"),
    "vertex": (404, "", "the route of one cloud's service"),
    "unknown_path_post": (404, "No adapter found", "the route exists here, as in vLLM; the folder does not"),
    "cors_preflight": (405, "", "web pages may not call unless --cors-allow-origin says so"),
    "v1_models": (200, "root", "adapters are listed too, as vLLM does: members root, parent and max_model_len more"),
    "auth_missing_models": (200, "root", "the same"),
    "info": (200, "for_production", "a member more, `local`, with state and adapters; no sha"),
    "auth_missing_info": (200, "for_production", "the same"),
}
UNKNOWN = [name for name, (_, text, _) in DEPARTURES.items() if text == REFUSED]
EVERY = sorted(path.stem for path in FOLDER.glob("*.json"))


def group(*beginnings: str) -> list[str]:
    return [name for name in EVERY if name.startswith(beginnings)]


KEYED = {*group("auth_", "reqlogprobs_", "max_total_2048_"), "sigterm_stream", "sigterm_generate_ad1"}
"""Recorded with a key, REQUEST_LOGPROBS and 1,024 of 2,048 tokens."""
OVERLOADED, TEMPLATELESS = group("overload_"), group("t5model_c")
STALLED = group("stall_")
"""Streams with comments in the middle, see test_streams."""
CASES = [name for name in EVERY if name not in {*OVERLOADED, *TEMPLATELESS, *STALLED}]
PLAIN = Limits(max_input_tokens=400, max_total_tokens=512)
LARGE = Limits(max_concurrent_requests=2, max_input_tokens=1024, max_total_tokens=2048)


@pytest.fixture(scope="module")
def adapters(adapter_a: Path, adapter_b: Path) -> dict[str, Path]:
    return {"ad1": adapter_a, "ad2": adapter_b}


def client_of(model: Path, options: Options, adapters: dict[str, Path] | None = None) -> Iterator[httpx.Client]:
    with listening(model, options, adapters) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def plain(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[httpx.Client]:
    yield from client_of(tiny_model, Options(PLAIN), adapters)


@pytest.fixture(scope="module")
def keyed(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[httpx.Client]:
    yield from client_of(tiny_model, Options(LARGE, api_key="s3cret", request_logprobs=True), adapters)


@pytest.fixture(scope="module")
def bare(tiny_model: Path) -> Iterator[httpx.Client]:
    yield from client_of(tiny_model, Options(PLAIN))


@pytest.fixture(scope="module")
def silent(tiny_model: Path, adapters: dict[str, Path]) -> Iterator[httpx.Client]:
    yield from client_of(tiny_model, Options(PLAIN, unknown_adapter="base"), adapters)


@pytest.mark.parametrize("name", [name for name in CASES if name not in DEPARTURES])
def test_answers_are_as_recorded(plain: httpx.Client, keyed: httpx.Client, name: str) -> None:
    check(send(keyed if name in KEYED else plain, name), case(name))


@pytest.mark.parametrize("name", [name for name in CASES if name in DEPARTURES])
def test_departures_are_as_declared(plain: httpx.Client, keyed: httpx.Client, bare: httpx.Client, name: str) -> None:
    status, text, reason = DEPARTURES[name]
    answer = send(bare if name.startswith("nolora_") else keyed if name in KEYED else plain, name)
    assert answer.status_code == status, reason
    assert text in answer.text, reason


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_adapters_are_answered_in_silence_where_that_is_asked_for(silent: httpx.Client, name: str) -> None:
    check(send(silent, name), case(name))


@pytest.mark.parametrize("name", OVERLOADED)
def test_overload_is_as_recorded(keyed: httpx.Client, name: str) -> None:
    endless = {"type": "regex", "value": "[a-z]{900,}"}
    long = {"inputs": "hello", "parameters": {"max_new_tokens": 1900, "grammar": endless}}
    if name == "overload_over":
        check(send(keyed, name), case(name))
        return
    key = {"authorization": "Bearer s3cret"}
    with (
        keyed.stream("POST", "/generate_stream", json=long, headers=key) as one,
        keyed.stream("POST", "/generate_stream", json=long, headers=key) as two,
    ):
        reading = [one.iter_bytes(), two.iter_bytes()]
        assert all(next(each) for each in reading), "both run"
        check(send(keyed, name), case(name))


@pytest.mark.parametrize("name", TEMPLATELESS)
def test_a_model_without_template_is_told(tiny_model: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = tmp_path / "templateless"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    with listening(folder, Options(PLAIN)) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        check(send(client, name), case(name))


def test_all_recorded_departures_are_still_recorded() -> None:
    assert DEPARTURES.keys() <= {path.stem for path in FOLDER.glob("*.json")}


def check(answer: httpx.Response, recorded: dict[str, Any]) -> None:
    """Hold an answer against a recording."""
    expected = recorded["response"]
    headers = {name.lower(): value for name, value in expected["headers"]}
    assert answer.status_code == expected["status"], answer.text
    assert answer.headers.get("content-type") == headers.get("content-type")
    assert own_headers(dict(answer.headers)) == own_headers(headers)
    body = expected["body"]
    if headers.get("content-type") == "application/json":
        check_json(answer.json(), httpx.Response(200, text=body).json())
    elif headers.get("content-type") == "text/event-stream":
        check_stream(events(answer.text), events(body))
    else:
        assert without_counts(answer.text) == without_counts(body)


def own_headers(headers: dict[str, str]) -> set[str]:
    """The names of the headers that the router adds to an answer, and what tells a 405's methods."""
    return {name for name in headers if name.startswith("x-") or name in ("allow", "cache-control")}


def check_json(found: Any, recorded: Any) -> None:
    if isinstance(recorded, dict) and "error" in recorded:
        assert {key: without_counts(value) for key, value in found.items()} == {
            key: without_counts(value) for key, value in recorded.items()
        }
    else:
        assert comparable(shape(found)) == comparable(shape(recorded))


def check_stream(found: list[Any], recorded: list[Any]) -> None:
    assert (found[-1] == "[DONE]") == (recorded[-1] == "[DONE]")
    found, recorded = ([one for one in events_ if one != "[DONE]"] for events_ in (found, recorded))
    if "error" in recorded[0]:
        assert found == recorded or without_counts(str(found)) == without_counts(str(recorded))
        return
    assert shape(found[-1]) == shape(recorded[-1])
    assert comparable(shape(found)) == comparable(shape(recorded))
    if "index" in recorded[0]:
        assert [one["index"] for one in found] == list(range(1, len(found) + 1))


def comparable(shapes: Any) -> Any:
    """Shapes in no order, as one answer may be longer than the other; what a log-probability can be, is one thing."""
    if isinstance(shapes, dict):
        return {key: comparable(shapes[key]) for key in sorted(shapes)}
    return sorted(map(str, map(comparable, shapes))) if isinstance(shapes, list) else shapes


def test_two_requests_at_once_do_not_mix_up_their_answers(plain: httpx.Client) -> None:
    """The recorded mixed batch: each answer is the one that the request gets alone."""
    names = [f"mix_patched_{index}" for index in ("0_base", "1_ad1", "2_ad2", "4_ad1", "5_base")]
    alone = [send(plain, name).json() for name in names]
    together: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda name=name: together.__setitem__(name, send(plain, name).json()))  # type: ignore[misc]
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tokens(together[name]) for name in names] == [tokens(one) for one in alone]
    assert len({str(tokens(one)) for one in alone}) == 3


def tokens(answer: dict[str, Any]) -> list[int]:
    return [one["id"] for one in answer["details"]["tokens"]]
