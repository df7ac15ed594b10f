"""The recorded requests of a real TGI, sent to this server: same status, same shape, same framing, same error text.

``DEPARTURES`` is the one list of recorded requests that are answered otherwise on purpose, each with its reason and
with what comes instead. ``docs/serve-model.md`` tells them to users, with the recordings that are no requests.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
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
UNKNOWN = [name for name, (_, text, _) in DEPARTURES.items() if text == REFUSED and not name.startswith("stock_")]
ELSEWHERE = {
    "overload_": "test_overload_is_as_recorded",
    "t5model_c": "test_a_model_without_template_is_told",
    "stall_": "test_idle_streams_get_comments_as_recorded",
    "sigterm_timeout_": "test_what_runs_beyond_the_limit_is_cut",
    "sigterm_timeline": "test_sigterm_refuses_the_new_and_finishes_the_running",
    "startup_health": "the same",
    "client_disconnect": "test_a_reader_that_goes_away_stops_a_stream",
    "metrics": "test_counters",
    "shardkill_": "no shard here to kill: test_a_model_that_fails_is_told_as_a_dead_shard_is",
    "hung_shard_": "no shard here to stop",
    "ranks_": "a crash of one library's kernels; ranks mix here",
    "mixed_ranks_": "the same",
    "stock_mix_": "not-a-number of the same kernels",
    "bad_shape_": "such an adapter is refused when it is loaded: test_what_cannot_be_loaded_is_told_as_vllm_does",
    "misfit_adapter_": "the same",
    "adapter_kinds_": "a comparison with PEFT, which computes here",
    "greedy_batch_effect": "an observation",
}
"""Recordings of other than a request to a server at rest, by the beginnings of their names: where they are tested."""
EVERY = sorted(path.stem for path in FOLDER.glob("*.json"))


def group(*beginnings: str) -> list[str]:
    return [name for name in EVERY if name.startswith(beginnings)]


KEY = {"authorization": "Bearer s3cret"}
KEYED = {*group("auth_", "reqlogprobs_", "max_total_2048_"), "sigterm_stream", "sigterm_generate_ad1"}
"""Recorded with a key, REQUEST_LOGPROBS and 1,024 of 2,048 tokens."""
OVERLOADED, TEMPLATELESS = group("overload_"), group("t5model_c")
CASES = [name for name in EVERY if not name.startswith(tuple(ELSEWHERE))]
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
    if name == "overload_over":
        until_free(keyed)
        check(send(keyed, name), case(name))
        return
    with busy(keyed), busy(keyed):
        check(send(keyed, name), case(name))


@contextmanager
def busy(client: httpx.Client) -> Iterator[None]:
    """A stream that goes on for long, from its first token."""
    endless = {"type": "regex", "value": "[a-z]{9000,}"}
    long = {"inputs": "hello", "parameters": {"max_new_tokens": 1900, "grammar": endless}}
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with client.stream("POST", "/generate_stream", json=long, headers=KEY) as stream:
            reading = stream.iter_bytes()  # kept: a reader that is dropped closes the stream
            if b"overloaded" not in next(reading):
                yield
                return
        time.sleep(0.1)  # the streams of the case before end when the server has seen that nobody reads them
    raise AssertionError("the server was never free")


def until_free(client: httpx.Client) -> None:
    with busy(client), busy(client):
        pass
    deadline = time.monotonic() + 20
    while send(client, "overload_over").status_code == 429 and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize("name", TEMPLATELESS)
def test_a_model_without_template_is_told(tiny_model: Path, tmp_path: Path, name: str) -> None:
    import shutil

    folder = tmp_path / "templateless"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    with listening(folder, Options(PLAIN)) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        check(send(client, name), case(name))


def test_the_page_names_every_departure() -> None:
    page = (FOLDER.parents[2] / "docs" / "serve-model.md").read_text()
    told = {name for name in EVERY for entry in re.findall(r"`([a-z0-9_*]+)`", page) if fnmatchcase(name, entry)}
    assert DEPARTURES.keys() <= set(EVERY)
    assert [name for name in DEPARTURES if name not in told] == []
    assert [name for name in ELSEWHERE if f"`{name}*`" not in page and f"`{name}`" not in page] == []


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
