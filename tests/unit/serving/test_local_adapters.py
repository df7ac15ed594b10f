from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import QUESTIONS, about_context, ask, assert_same

from rag_tuned_memory.errors import AdapterDamaged, AdapterNotLoaded, CanaryMismatch, InvalidInput
from rag_tuned_memory.serving.base import Fingerprint, Generation, Message
from rag_tuned_memory.serving.fingerprint import make_fingerprint, verify
from rag_tuned_memory.serving.local import LocalBackend
from tiny_model import build_random_adapter, build_tiny_model

pytestmark = pytest.mark.anyio

CANARIES = [([Message("user", question)], "the disk was full") for question in QUESTIONS[:3]]


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_layer(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.1.self_attn.q_proj" in name]:
        del tensors[name]


def spoil(tensors: dict[str, Any]) -> None:
    tensors[next(iter(tensors))][0, 0] = float("nan")


def rename(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        tensors[name.replace(".layers.1.", ".layers.9.")] = tensors.pop(name)


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: shutil.rmtree(folder), r"no adapter_config\.json"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
    (lambda folder: (folder / "adapter_config.json").write_text("{"), "configuration cannot be read"),
    (lambda folder: (folder / "adapter_config.json").write_text("[]"), "peft_type must be LORA"),
    (edit_config(peft_type="IA3"), "peft_type must be LORA"),
    (edit_config(use_dora=True), "use_dora cannot be served"),
    (edit_config(bias="all"), "bias cannot be served"),
    (edit_config(r=32), r"has the shape \(4, \d+\), the base model needs \(32, \d+\)"),
    (truncate, "weights cannot be read"),
    (edit_weights(lambda tensors: tensors.clear()), "no weights"),
    (edit_weights(spoil), "NaN or infinity"),
    (edit_weights(rename), r"no place for the tensor .*layers\.9"),
    (edit_weights(lambda tensors: tensors.pop(next(iter(tensors)))), "has no partner"),
    (edit_weights(drop_layer), "lacks 2 tensors"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("others", [False, True], ids=["first", "beside-another"])
async def test_damaged_adapters_are_refused_and_nothing_stays(
    backend: LocalBackend,
    adapter_a: Path,
    adapter_b: Path,
    tmp_path: Path,
    damage: Callable[[Path], Any],
    message: str,
    others: bool,
) -> None:
    if others:
        await backend.load_adapter("b", adapter_b)
    requests = [ask(question, name) for question in QUESTIONS[:2] for name in ([None, "b"] if others else [None])]
    before = await backend.generate(requests)
    folder = tmp_path / "damaged"
    shutil.copytree(adapter_a, folder)
    damage(folder)
    with pytest.raises(AdapterDamaged, match=message) as caught:
        await backend.load_adapter("a", folder)
    assert str(folder) in str(caught.value)
    assert await backend.adapters() == (["b"] if others else [])
    for left, right in zip(await backend.generate(requests), before, strict=True):
        assert_same(left, right)
    await backend.load_adapter("a", adapter_a)
    assert (await backend.generate([ask("hello", "a")]))[0].text != before[0].text


async def test_an_adapter_of_another_base_model_is_refused(backend: LocalBackend, tmp_path: Path) -> None:
    deeper = build_tiny_model(tmp_path / "deeper", layers=3)
    foreign = build_random_adapter(deeper, tmp_path / "foreign")
    with pytest.raises(AdapterDamaged, match=r"no place for the tensor .*layers\.2"):
        await backend.load_adapter("x", foreign)


async def test_names_are_never_overwritten(backend: LocalBackend, adapter_a: Path, adapter_b: Path) -> None:
    await backend.load_adapter("a", adapter_a)
    (before,) = await backend.generate([ask("hello", "a")])
    with pytest.raises(InvalidInput, match=r"'a' is already loaded.*new version's name"):
        await backend.load_adapter("a", adapter_b)
    assert_same((await backend.generate([ask("hello", "a")]))[0], before)
    with pytest.raises(InvalidInput, match="needs a name"):
        await backend.load_adapter(" ", adapter_b)


async def test_unloading_and_loading_again(backend: LocalBackend, adapter_a: Path, adapter_b: Path) -> None:
    (base,) = await backend.generate([about_context("who", shared_prefix=1)])
    texts = []
    for path in (adapter_a, adapter_b, adapter_a):
        await backend.load_adapter("same-name", path)
        texts.append((await backend.generate([about_context("who", "same-name", shared_prefix=1)]))[0].text)
        await backend.unload_adapter("same-name")
        with pytest.raises(AdapterNotLoaded):
            await backend.generate([ask("who", "same-name")])
        assert_same((await backend.generate([about_context("who", shared_prefix=1)]))[0], base)
    assert texts[0] == texts[2]
    assert texts[0] != texts[1]
    with pytest.raises(AdapterNotLoaded, match="'same-name'"):
        await backend.unload_adapter("same-name")
    assert await backend.adapters() == []


async def test_unloading_waits_for_requests_that_use_it(
    make_backend: Callable[..., LocalBackend], adapter_a: Path
) -> None:
    backend = make_backend(max_batch_size=2)
    await backend.load_adapter("a", adapter_a)
    expected = await backend.generate([ask(question, "a", max_new_tokens=40) for question in QUESTIONS])
    answers: list[Generation] = []

    async def requests() -> None:
        answers.extend(await backend.generate([ask(question, "a", max_new_tokens=40) for question in QUESTIONS]))

    async with anyio.create_task_group() as group:
        group.start_soon(requests)
        await anyio.wait_all_tasks_blocked()
        await backend.unload_adapter("a")
        with pytest.raises(AdapterNotLoaded):
            await backend.generate([ask("hello", "a")])
    for left, right in zip(answers, expected, strict=True):
        assert_same(left, right)
    assert not backend._loaded().slots._peft.peft_config  # type: ignore[union-attr]


async def test_adapters_come_and_go_while_others_are_served(
    backend: LocalBackend, adapter_a: Path, adapter_b: Path
) -> None:
    await backend.load_adapter("a", adapter_a)
    (expected,) = await backend.generate([ask("hello", "a")])
    done = False

    async def serve() -> None:
        while not done:
            (answer,) = await backend.generate([ask("hello", "a")])
            assert_same(answer, expected)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        for index in range(5):
            await backend.load_adapter(f"b{index}", adapter_b)
            await backend.generate([ask("who", f"b{index}"), ask("who")])
            await backend.unload_adapter(f"b{index}")
        done = True


async def test_a_fingerprint_proves_the_adapter(
    backend: LocalBackend, make_backend: Callable[..., LocalBackend], adapter_a: Path, adapter_b: Path, tmp_path: Path
) -> None:
    await backend.load_adapter("a", adapter_a)
    made = await make_fingerprint(backend, "a", CANARIES)
    fingerprint = Fingerprint.model_validate_json(made.model_dump_json())
    assert fingerprint.margin > 10 * 1e-3
    other = make_backend()
    await other.load_adapter("a-v1", adapter_a, fingerprint)
    await verify(other, "a-v1", fingerprint)
    with pytest.raises(CanaryMismatch, match="wrong:"):
        await other.load_adapter("wrong", adapter_b, fingerprint)
    assert await other.adapters() == ["a-v1"]
    with pytest.raises(AdapterNotLoaded):
        await other.generate([ask("hello", "wrong")])
    zeroed = tmp_path / "zeroed"
    shutil.copytree(adapter_a, zeroed)
    edit_weights(lambda tensors: [tensor.zero_() for tensor in tensors.values()] and None)(zeroed)
    with pytest.raises(CanaryMismatch, match="answers as the base model does"):
        await other.load_adapter("silent", zeroed, fingerprint)


async def test_a_fingerprint_of_another_base_is_refused(
    backend: LocalBackend, make_backend: Callable[..., LocalBackend], adapter_a: Path, tmp_path: Path
) -> None:
    await backend.load_adapter("a", adapter_a)
    fingerprint = await make_fingerprint(backend, "a", CANARIES)
    other = make_backend(build_tiny_model(tmp_path / "other", seed=3))
    with pytest.raises(CanaryMismatch):
        await other.load_adapter("a", adapter_a, fingerprint)
    assert await other.adapters() == []
