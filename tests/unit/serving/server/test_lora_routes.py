"""Adapters that come and go while the server runs, by vLLM's routes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.serving.server.adapters import parse_adapters
from rag_tuned_memory.serving.server.service import Service


def load(client: httpx.Client, name: str, path: Path | str, **more: Any) -> httpx.Response:
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


def unload(client: httpx.Client, name: str) -> httpx.Response:
    return client.post("/v1/unload_lora_adapter", json={"lora_name": name})


def names(client: httpx.Client) -> list[str]:
    return [card["id"] for card in client.get("/v1/models").json()["data"][1:]]


def tokens(client: httpx.Client, adapter: str | None) -> list[int]:
    parameters = {"max_new_tokens": 8, "details": True, "adapter_id": adapter}
    answer = client.post("/generate", json={"inputs": "The cause was", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def test_an_adapter_is_loaded_answers_and_goes(client: httpx.Client, adapters: dict[str, Path]) -> None:
    answer = load(client, "new", adapters["ad1"])
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert names(client) == ["ad1", "ad2", "new"]
    assert tokens(client, "new") == tokens(client, "ad1") != tokens(client, None)
    answer = unload(client, "new")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
    assert names(client) == ["ad1", "ad2"]
    gone = client.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "new"}})
    assert (gone.status_code, "unknown adapter 'new'" in gone.text) == (422, True)


def test_what_cannot_be_loaded_is_told_as_vllm_does(
    client: httpx.Client, service: Service, adapters: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapters["ad1"], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nonsense")
    cases: list[tuple[httpx.Response, int, str, str]] = [
        (load(client, "ad1", adapters["ad2"]), 400, "InvalidUserInput", "'ad1' has already been loaded"),
        (load(client, service.base_id, adapters["ad1"]), 400, "InvalidUserInput", "conflicts with a served base model"),
        (load(client, "tgi", adapters["ad1"]), 400, "InvalidUserInput", "conflicts with a served base model"),
        (load(client, "", adapters["ad1"]), 400, "InvalidUserInput", "must be provided"),
        (load(client, "x", ""), 400, "InvalidUserInput", "must be provided"),
        (load(client, "x", "/no/such"), 404, "NotFoundError", "Loading lora x failed: No adapter found for /no/such"),
        (load(client, "x", "bad\0path"), 404, "NotFoundError", "No adapter found"),
        (load(client, "x", adapters["ad1"], load_inplace=True), 400, "InvalidUserInput", "under a new name"),
        (load(client, "x", broken), 500, "InternalServerError", "the weights cannot be read"),
        (unload(client, "nobody"), 404, "NotFoundError", "The lora adapter 'nobody' cannot be found."),
        (unload(client, ""), 400, "InvalidUserInput", "needs to be provided"),
    ]
    for answer, status, kind, text in cases:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (status, status, kind), answer.text
        assert text in error["message"]
    assert names(client) == ["ad1", "ad2"]
    assert client.post("/v1/load_lora_adapter", json={"lora_name": "x"}).status_code == 422


def test_unloading_waits_for_who_uses_it_and_refuses_the_next(
    client: httpx.Client, url: str, adapters: dict[str, Path]
) -> None:
    load(client, "busy", adapters["ad1"])
    parameters = {"max_new_tokens": 300, "adapter_id": "busy", "grammar": {"type": "regex", "value": "[a-z]{900,}"}}
    done: list[int] = []
    with client.stream("POST", "/generate_stream", json={"inputs": "x", "parameters": parameters}) as answer:
        lines = answer.iter_lines()
        next(lines)
        with httpx.Client(base_url=url, timeout=60) as other:
            thread = threading.Thread(target=lambda: done.append(unload(other, "busy").status_code))
            thread.start()
            while "busy" in names(client):
                pass
            refused = client.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "busy"}})
            assert refused.status_code == 422
            assert not done
            last = [line for line in lines if line][-1]
            thread.join()
    assert '"generated_text":"' in last, "the stream came to its end"
    assert done == [200]


def test_adapters_at_start_are_listed_as_for_tgi(tmp_path: Path) -> None:
    listed = parse_adapters(f"a={tmp_path}/1,b={tmp_path}/2,a={tmp_path}/3")
    assert [(one.name, one.path) for one in listed] == [("a", tmp_path / "3"), ("b", tmp_path / "2")]
    assert parse_adapters("") == []


@pytest.mark.parametrize("text", ["a", "a=", "=x", "a =/x", "a=/x@main", "a=/x=y", "a=/x, b=/y", "org/model"])
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="it must be name=/path"):
        parse_adapters(text)
