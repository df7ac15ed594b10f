"""What only a real vLLM can prove. Skipped with one line where none is named."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from asking import QUESTIONS, ask, assert_same
from real_vllm import HOW, RealVllm

from rag_tuned_memory.errors import AdapterDamaged, AdapterError, AdapterNotLoaded, BackendUnavailable, CanaryMismatch
from rag_tuned_memory.serving.base import Fingerprint, Message
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.vllm import VllmBackend

if not (os.environ.get("RTM_TEST_VLLM") or os.environ.get("RTM_TEST_VLLM_PYTHON")):
    pytest.skip(HOW, allow_module_level=True)
pytestmark = [pytest.mark.anyio, pytest.mark.slow]
LONG = "The payment service failed at 12:30 because the disk was full. " * 25
"""Fills blocks of the server's prefix cache."""
CANARIES = [([Message("user", question)], "the disk was full") for question in (*QUESTIONS[1:4], LONG + "Why?")]


def by(name: str | None) -> list[Any]:
    return [ask(question, name, max_new_tokens=12) for question in QUESTIONS]


@pytest.fixture(scope="module")
def fingerprints(local: LocalBackend) -> dict[str, Fingerprint]:
    async def make() -> dict[str, Fingerprint]:
        return {name: await make_fingerprint(local, name, CANARIES) for name in await local.adapters()}

    return anyio.run(make)


async def load(backend: VllmBackend, path: Path, fingerprints: dict[str, Fingerprint]) -> None:
    await backend.load_adapter(path.name, path, fingerprints[path.name])


async def test_two_versions_and_the_base_answer_as_they_do_locally(
    backend: VllmBackend, local: LocalBackend, v1: Path, v2: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    for path in (v1, v2):
        await load(backend, path, fingerprints)
    print(f"base and adapters are kept apart: {backend.keeps_base_apart}")
    requests = [*by(None), *by("ops-v1"), *by("ops-v2")]
    ours, theirs = await backend.generate(requests), await local.generate(requests)
    same = 0
    for left, right in zip(ours, theirs, strict=True):
        for a, b in zip(left.tokens, right.tokens, strict=False):
            assert abs(a.logprob - b.logprob) < 0.02
            if a.id != b.id:
                break
            assert a.entropy <= b.entropy + 0.02  # a lower bound
        same += left.text == right.text
        assert (left.prompt_tokens, left.adapter) == (right.prompt_tokens, right.adapter)
    assert same >= 0.9 * len(requests)
    assert len({one.text for one in ours[1 :: len(QUESTIONS)]}) == 3


async def test_scores_are_the_local_ones(
    backend: VllmBackend, local: LocalBackend, v1: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    await load(backend, v1, fingerprints)
    texts = ["the disk was full", "", "Ana 🌟"]
    for name in (None, "ops-v1"):
        ours, theirs = await backend.score(ask("who", name), texts), await local.score(ask("who", name), texts)
        for left, right in zip(ours, theirs, strict=True):
            assert left == pytest.approx(right, abs=0.02)


async def test_a_stream_and_its_end(
    backend: VllmBackend, url: str, v1: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    await load(backend, v1, fingerprints)
    for request in (ask("who", "ops-v1", max_new_tokens=12), ask("Count to ten.", max_new_tokens=12, stop=("4", "e"))):
        [whole] = await backend.generate([request])
        chunks = [chunk async for chunk in backend.stream(request)]
        assert chunks[-1].generation is not None
        assert_same(chunks[-1].generation, whole, tolerance=0.02)
        assert "".join(chunk.text for chunk in chunks) == chunks[-1].generation.text
    chunks_ = backend.stream(ask("Tell me a very long story.", max_new_tokens=900))
    await anext(chunks_)
    assert running(url) == 1
    await chunks_.aclose()  # type: ignore[attr-defined]
    await until(lambda: not running(url))  # it does not go on with an answer that nobody reads


async def test_an_answer_keeps_to_a_pattern(backend: VllmBackend) -> None:
    pattern = "(yes|no), [a-z]{3}"
    (answer,) = await backend.generate([ask("who", max_new_tokens=12, pattern=pattern)])
    assert re.fullmatch(pattern, answer.text)


async def test_many_at_once(backend: VllmBackend, v1: Path, v2: Path, fingerprints: dict[str, Fingerprint]) -> None:
    for path in (v1, v2):
        await load(backend, path, fingerprints)
    alone = {
        name: (await backend.generate([ask("who", name, max_new_tokens=8)]))[0] for name in (None, "ops-v1", "ops-v2")
    }
    names = [None, "ops-v1", "ops-v2"] * 8
    answers = await backend.generate([ask("who", name, max_new_tokens=8) for name in names])
    for name, answer in zip(names, answers, strict=True):
        assert answer.adapter == name
        assert_same(answer, alone[name], tolerance=0.05)


async def test_swap_and_unload(
    backend: VllmBackend, url: str, v1: Path, v2: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    await load(backend, v1, fingerprints)
    await load(backend, v2, fingerprints)
    await backend.unload_adapter("ops-v1")
    assert await backend.adapters() == ["ops-v2"]
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("who", "ops-v1")])
    assert post(url, "completions", model="ops-v1", prompt=[1], max_tokens=1).status_code == 404
    assert (await backend.generate([ask("who", "ops-v2")]))[0].adapter == "ops-v2"


async def test_an_adapter_that_someone_else_unloaded(
    backend: VllmBackend, url: str, v1: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    await load(backend, v1, fingerprints)
    assert post(url, "unload_lora_adapter", lora_name="ops-v1").status_code == 200
    with pytest.raises(AdapterNotLoaded, match="any more"):
        await backend.generate([ask("who", "ops-v1")])
    assert await backend.adapters() == []
    await load(backend, v1, fingerprints)
    assert await backend.adapters() == ["ops-v1"]


async def test_what_is_refused(
    backend: VllmBackend,
    url: str,
    model: Path,
    v1: Path,
    random_adapter: Callable[..., Path],
    fingerprints: dict[str, Fingerprint],
    tmp_path: Path,
) -> None:
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("who", "nobody")])
    with pytest.raises(AdapterError, match=r"rank 32 is above the server's --max-lora-rank 16\. .*--max-lora-rank 32"):
        await backend.load_adapter("wide", random_adapter("wide", seed=3, rank=32))
    copied = shutil.copytree(v1, tmp_path / "here" / "ops-v1")
    elsewhere = VllmBackend(url, model, adapters_root=(tmp_path / "here", "/nowhere"))
    with pytest.raises(AdapterDamaged, match="finds no adapter in /nowhere/ops-v1"):
        await elsewhere.load_adapter("ops-v1", copied)
    await elsewhere.close()
    with pytest.raises(CanaryMismatch):
        await backend.load_adapter("zeroed", zeroed(v1, tmp_path / "zeroed"), fingerprints["ops-v1"])
    assert listed(url) == []


async def test_changed_files_under_the_same_path_and_name(
    backend: VllmBackend, url: str, v1: Path, tmp_path: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    path = tmp_path / "same"
    question = ask(LONG + "Why?", "same", max_new_tokens=8)
    shutil.copytree(v1, path)
    await backend.load_adapter("same", path, fingerprints["ops-v1"])
    await backend.generate([question])
    old = raw_logprobs(url, "same")
    await backend.unload_adapter("same")
    zeroed(v1, path)
    await backend.load_adapter("same", path)
    [answer] = await backend.generate([question])
    [base] = await backend.generate([ask(LONG + "Why?", max_new_tokens=8)])
    assert_same(answer, dataclasses.replace(base, adapter="same"), tolerance=0.02)
    print(f"raw, before: {old}; after, without a salt: {raw_logprobs(url, 'same')}; base: {raw_logprobs(url, 'base')}")
    await backend.unload_adapter("same")
    with pytest.raises(CanaryMismatch):
        await backend.load_adapter("same", path, fingerprints["ops-v1"])


async def test_a_server_that_dies_in_the_middle_of_a_rollout(
    started: RealVllm | None, url: str, model: Path, v1: Path, v2: Path, fingerprints: dict[str, Fingerprint]
) -> None:
    if started is None:
        pytest.skip("the server is not ours to kill: RTM_TEST_VLLM_PYTHON starts one")
    backend = VllmBackend(url, model, max_retries=0)
    await load(backend, v1, fingerprints)
    expected = (await backend.generate([ask("who", "ops-v1")]))[0]
    outcomes: list[str] = []
    rolled = anyio.Event()

    async def client() -> None:
        """Asks for v1 all the time, and loads it again when it is told to."""
        while not rolled.is_set():
            try:
                [answer] = await backend.generate([ask("who", "ops-v1")])
                assert_same(answer, expected, tolerance=0.05)
                outcomes.append("right")
            except AdapterNotLoaded:
                outcomes.append("not loaded")
                await load(backend, v1, fingerprints)
            except BackendUnavailable:
                outcomes.append("unavailable")
                await anyio.sleep(0.5)

    async with anyio.create_task_group() as group:
        group.start_soon(client)
        await until(lambda: "right" in outcomes)
        await load(backend, v2, fingerprints)  # loaded and proven; v1 still answers
        started.kill()
        with pytest.raises(BackendUnavailable):
            await backend.generate([ask("who", "ops-v2")])
        assert (await backend.health()).state == "refused"
        await anyio.to_thread.run_sync(started.start)
        with pytest.raises(AdapterNotLoaded):
            await backend.generate([ask("who", "ops-v2")])
        await load(backend, v2, fingerprints)
        before = len(outcomes)
        await until(lambda: "right" in outcomes[before:])
        rolled.set()
    assert outcomes[0] == "right"
    assert outcomes.count("not loaded") >= 1
    assert "unavailable" in outcomes
    assert await backend.adapters() == ["ops-v1", "ops-v2"]
    await backend.unload_adapter("ops-v1")
    [answer] = await backend.generate([ask("who", "ops-v2")])
    assert answer.adapter == "ops-v2"
    await backend.close()


def zeroed(adapter: Path, folder: Path) -> Path:
    """The adapter's files with weights of zero: the server answers as the base model does."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor * 0 for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def running(url: str) -> float:
    """Answers that the server is writing."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running"))


def post(url: str, route: str, **body: Any) -> httpx.Response:
    """A request past our client."""
    return httpx.post(f"{url}/v1/{route}", json=body, timeout=60)


def raw_logprobs(url: str, name: str) -> list[float]:
    """Of a greedy answer to the long prompt, past our client."""
    reply = post(url, "completions", model=name, prompt=LONG, max_tokens=4, temperature=0, logprobs=0)
    return [round(one, 3) for one in reply.json()["choices"][0]["logprobs"]["token_logprobs"]]


def listed(url: str) -> list[str]:
    """The adapters that the server has."""
    cards = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
    return [card["id"] for card in cards if card["parent"]]


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    def poll() -> bool:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        return bool(condition())

    assert await anyio.to_thread.run_sync(poll)
