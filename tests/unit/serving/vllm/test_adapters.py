from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import QUESTIONS, ask
from vllm_double import VllmDouble, write_adapter

from rag_tuned_memory.errors import (
    AdapterDamaged,
    AdapterError,
    AdapterNotLoaded,
    BackendError,
    BackendUnavailable,
    CanaryMismatch,
    InvalidInput,
)
from rag_tuned_memory.serving.base import Fingerprint, Generation, Message
from rag_tuned_memory.serving.fingerprint import make_fingerprint
from rag_tuned_memory.serving.vllm import VllmBackend

pytestmark = pytest.mark.anyio
CANARIES = [([Message("user", question)], "the disk was full") for question in QUESTIONS[:3]]


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_adapter(tmp_path.resolve() / "adapters" / "a-v1", seed=1)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write_adapter(tmp_path.resolve() / "adapters" / "a-v2", seed=2)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


async def fingerprint_of(double: VllmDouble, backend: VllmBackend, path: Path) -> Fingerprint:
    """Made by the double itself, as it answers with these weights."""
    name = f"made-{path.name}"
    await backend.load_adapter(name, path)
    made = await make_fingerprint(backend, name, CANARIES)
    await backend.unload_adapter(name)
    double.requests.clear()
    return made


def without_greedy(fingerprint: Fingerprint) -> Fingerprint:
    bare = {"adapter_greedy": None, "base_greedy": None}
    return fingerprint.model_copy(update={"canaries": tuple(c.model_copy(update=bare) for c in fingerprint.canaries)})


async def test_a_proven_adapter_answers_by_its_name(backend: VllmBackend, double: VllmDouble, a: Path, b: Path) -> None:
    fingerprint = await fingerprint_of(double, backend, a)
    await backend.load_adapter("a-v1", a, fingerprint)
    assert double.sent("/v1/load_lora_adapter") == [{"lora_name": "a-v1", "lora_path": str(a)}]
    await backend.load_adapter("a-v2", b)
    assert await backend.adapters() == ["a-v1", "a-v2"]
    double.requests.clear()
    base, one, two = await backend.generate([ask("who"), ask("who", "a-v1"), ask("who", "a-v2")])
    assert sorted(body["model"] for body in double.sent("/v1/completions")) == ["a-v1", "a-v2", "base"]
    assert (base.adapter, one.adapter, two.adapter) == (None, "a-v1", "a-v2")
    assert len({base.text, one.text, two.text}) == 3


async def test_what_is_not_held_is_never_sent(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    double.adapters["theirs"] = (str(a), weights(a))  # the server has it; nobody has proven it
    for name in ("theirs", "", "A", " a-v1", "base"):
        for call in (
            lambda n=name: backend.generate([ask("who"), ask("who", n)]),
            lambda n=name: backend.score(ask("who", n), ["x"]),
            lambda n=name: anext(backend.stream(ask("who", n))),
            lambda n=name: backend.unload_adapter(n),
        ):
            with pytest.raises(AdapterNotLoaded, match=r"loaded: none"):
                await call()
    assert double.requests == []
    assert await backend.adapters() == []


@pytest.mark.parametrize("greedy", [True, False])
async def test_another_adapter_is_unloaded_again(
    backend: VllmBackend, double: VllmDouble, a: Path, b: Path, greedy: bool
) -> None:
    fingerprint = await fingerprint_of(double, backend, a)
    with pytest.raises(CanaryMismatch, match="a-v2"):
        await backend.load_adapter("a-v2", b, fingerprint if greedy else without_greedy(fingerprint))
    assert double.adapters == {}
    assert await backend.adapters() == []
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("who", "a-v2")])
    await backend.load_adapter("a-v1", a, fingerprint if greedy else without_greedy(fingerprint))


async def test_a_server_that_answers_from_the_base_is_found_out(
    backend: VllmBackend, double: VllmDouble, a: Path
) -> None:
    fingerprint = await fingerprint_of(double, backend, a)
    double.weights = lambda body: b"base"  # type: ignore[method-assign]
    with pytest.raises(CanaryMismatch, match="answers as the base model does"):
        await backend.load_adapter("a-v1", a, fingerprint)
    assert double.adapters == {}


async def test_changed_files_never_answer_from_what_was_cached_for_the_old_ones(
    backend: VllmBackend, double: VllmDouble, a: Path, b: Path
) -> None:
    fingerprints = [await fingerprint_of(double, backend, one) for one in (a, b)]
    path = a.parent / "same"
    answers = []
    for source, fingerprint in zip((a, b), fingerprints, strict=True):
        shutil.copytree(source, path, dirs_exist_ok=True)
        await backend.load_adapter("same", path, fingerprint)
        [answer] = await backend.generate([ask("who", "same")])
        answers.append(answer.text)
        await backend.unload_adapter("same")
    assert answers[0] != answers[1]
    salts = {body["cache_salt"] for body in double.sent("/v1/completions") if body["model"] == "same"}
    assert len(salts) == 2
    # Without the salt the double keeps the old answers, as vLLM does:
    double.adapters["same"] = (str(path), weights(a))
    body = {"model": "same", "prompt": [1]}
    old = double.drawn(body)
    double.adapters["same"] = (str(path), weights(b))
    assert double.drawn(body) == old


async def test_a_name_is_never_overwritten(backend: VllmBackend, double: VllmDouble, a: Path, b: Path) -> None:
    await backend.load_adapter("a", a)
    with pytest.raises(InvalidInput, match=r"'a' is already loaded.*new version's name"):
        await backend.load_adapter("a", b)
    for name in ("", "  "):
        with pytest.raises(InvalidInput, match="needs a name"):
            await backend.load_adapter(name, b)
    with pytest.raises(InvalidInput, match="base model's name"):
        await backend.load_adapter("base", b)
    assert len(double.sent("/v1/load_lora_adapter")) == 1
    assert not any("load_inplace" in body for body in double.sent("/v1/load_lora_adapter"))


async def test_two_tasks_load_the_same_name(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    outcomes: list[str] = []

    async def load() -> None:
        try:
            await backend.load_adapter("a", a)
            outcomes.append("loaded")
        except InvalidInput:
            outcomes.append("refused")

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        group.start_soon(load)
    assert sorted(outcomes) == ["loaded", "refused"]
    assert await backend.adapters() == ["a"]


async def test_what_another_process_loaded_is_proven_and_used(
    connect: Callable[..., VllmBackend], double: VllmDouble, a: Path, b: Path
) -> None:
    one, other = connect(), connect()
    fingerprint = await fingerprint_of(double, one, a)
    await one.load_adapter("a", a, fingerprint)
    await other.load_adapter("a", a, fingerprint)
    assert len(double.sent("/v1/load_lora_adapter")) == 1
    assert (await one.generate([ask("who", "a")]))[0].text == (await other.generate([ask("who", "a")]))[0].text
    with pytest.raises(InvalidInput, match=r"another adapter by the name 'a', from .*a-v1 instead of .*a-v2"):
        await connect().load_adapter("a", b)
    await other.unload_adapter("a")
    with pytest.raises(AdapterNotLoaded, match=r"does not have the adapter 'a' any more.*Load it again"):
        await one.generate([ask("who", "a")])


async def test_another_process_was_quicker(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    models = {"object": "list", "data": [{"id": "base", "root": "/m", "parent": None, "max_model_len": 2048}]}
    double.adapters["a"] = (str(a), weights(a))
    double.fail("/v1/models", 200, models)  # listed before the other one loaded it
    await backend.load_adapter("a", a)
    assert await backend.adapters() == ["a"]


async def test_a_server_that_does_not_list_what_it_loaded(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    double.fail("/v1/load_lora_adapter", 200, b"Success")
    with pytest.raises(CanaryMismatch, match="does not list the adapter"):
        await backend.load_adapter("a", a)


async def test_after_a_restart_an_adapter_is_not_loaded_until_it_is_loaded_again(
    backend: VllmBackend, double: VllmDouble, a: Path
) -> None:
    await backend.load_adapter("a", a)
    [before] = await backend.generate([ask("who", "a")])
    double.restart()
    with pytest.raises(AdapterNotLoaded, match="any more: it was restarted"):
        await backend.generate([ask("who", "a")])
    assert await backend.adapters() == []
    await backend.load_adapter("a", a)
    assert (await backend.generate([ask("who", "a")]))[0].tokens == before.tokens
    double.restart()
    assert await backend.adapters() == []  # asks the server
    await backend.load_adapter("a", a)
    double.restart()
    with pytest.raises(AdapterNotLoaded):
        await backend.score(ask("who", "a"), ["x"])
    await backend.load_adapter("a", a)
    double.restart()
    with pytest.raises(AdapterNotLoaded):
        await anext(backend.stream(ask("who", "a")))
    await backend.load_adapter("a", a)
    double.restart()
    await backend.unload_adapter("a")  # gone is gone
    assert await backend.adapters() == []


async def test_unloading_waits_for_requests_that_use_it(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    await backend.load_adapter("a", a)
    expected = await backend.generate([ask(question, "a") for question in QUESTIONS[:3]])
    double.gate.clear()
    answers: list[Generation] = []
    unloaded = anyio.Event()

    async def requests() -> None:
        answers.extend(await backend.generate([ask(question, "a") for question in QUESTIONS[:3]]))

    async def unload() -> None:
        await backend.unload_adapter("a")
        unloaded.set()

    async with anyio.create_task_group() as group:
        group.start_soon(requests)
        await double.until(lambda one: one.running == 3)
        group.start_soon(unload)
        await anyio.sleep(0.1)
        assert not unloaded.is_set()
        assert double.sent("/v1/unload_lora_adapter") == []
        with pytest.raises(AdapterNotLoaded):
            await backend.generate([ask("who", "a")])
        with pytest.raises(InvalidInput, match="already loaded"):
            await backend.load_adapter("a", a)
        double.gate.set()
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert double.adapters == {}
    await backend.load_adapter("a", a)


async def test_a_cancelled_unload_leaves_nothing_locked(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    await backend.load_adapter("a", a)
    double.gate.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(backend.generate, [ask("who", "a")])
        await double.until(lambda one: one.running)
        with anyio.move_on_after(0.05):
            await backend.unload_adapter("a")
        assert await backend.adapters() == []
        await backend.load_adapter("a", a)
        double.gate.set()
    assert await backend.adapters() == ["a"]


async def test_an_interrupted_proof_holds_nothing_and_can_be_done_again(
    backend: VllmBackend, double: VllmDouble, a: Path
) -> None:
    fingerprint = await fingerprint_of(double, backend, a)
    double.gate.clear()
    with anyio.move_on_after(0.2):
        await backend.load_adapter("a", a, fingerprint)
    with pytest.raises(AdapterNotLoaded):
        await backend.generate([ask("who", "a")])
    double.gate.set()
    await anyio.sleep(0.3)  # the requests of the interrupted proof are answered to nobody
    double.fail("/v1/completions", 503, b"")
    with pytest.raises(BackendUnavailable):
        await backend.load_adapter("a", a, fingerprint)
    await backend.load_adapter("a", a, fingerprint)
    assert await backend.adapters() == ["a"]


async def test_a_server_sees_another_path(
    connect: Callable[..., VllmBackend], double: VllmDouble, a: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "mounted"
    theirs.symlink_to(a.parent)
    backend = connect(adapters_root=(a.parent, str(theirs)))
    await backend.load_adapter("a", a)
    assert double.adapters["a"][0] == f"{theirs}/a-v1"
    await backend.unload_adapter("a")
    elsewhere = write_adapter(tmp_path / "elsewhere")
    with pytest.raises(InvalidInput, match=r"elsewhere: the adapter does not lie in .*adapters"):
        await backend.load_adapter("b", elsewhere)
    with pytest.raises(AdapterDamaged, match=r"finds no adapter in /nowhere/a-v1\. It must see the same folder"):
        await connect(adapters_root=(a.parent, "/nowhere")).load_adapter("a", a)


async def test_a_rank_above_the_servers_limit(
    connect: Callable[..., VllmBackend], double: VllmDouble, tmp_path: Path
) -> None:
    wide = write_adapter(tmp_path / "wide", r=8, rank_pattern={"up_proj": 40})
    said = r"rank 40 is above the server's --max-lora-rank 16\. Start vLLM with --max-lora-rank 64, or train"
    with pytest.raises(AdapterError, match=said):
        await connect().load_adapter("a", wide)
    double.requests.clear()
    with pytest.raises(AdapterError, match=said):
        await connect(max_lora_rank=16).load_adapter("a", wide)
    with pytest.raises(AdapterError, match=r"no rank above 512, and this is 600"):
        await connect().load_adapter("a", write_adapter(tmp_path / "huge", r=600))
    assert double.requests == []
    double.max_rank = 64
    await connect(max_lora_rank=64).load_adapter("a", wide)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "does not serve PEFT's use_dora"),
        ({"bias": "all", "lora_bias": True}, "PEFT's bias .* PEFT's lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "PEFT's modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "the init 'pissa_niter_4' has changed"),
        ({"peft_type": "IA3"}, "not PEFT's 'IA3'"),
        ({"r": None}, "rank is None"),
        ({"r": -1}, "rank is -1"),
        ({"rank_pattern": {"q": "x"}}, "rank is 'x'"),
        ({"rank_pattern": [1]}, r"rank is \[1\]"),
    ],
)
async def test_kinds_that_vllm_does_not_serve(
    backend: VllmBackend, double: VllmDouble, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterError, match=said):
        await backend.load_adapter("a", write_adapter(tmp_path / "a", **config))
    assert double.requests == []


async def test_an_adapter_of_another_model(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    path = a / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"layers.0.mlp", b"layers.7.mlp"))
    with pytest.raises(AdapterError, match=r"base model has no layers model\.layers\.7\.mlp\.up_proj"):
        await backend.load_adapter("a", a)
    assert double.requests == []


async def test_kinds_that_it_serves(backend: VllmBackend, tmp_path: Path) -> None:
    plain = {"init_lora_weights": "gaussian", "use_rslora": True, "alpha_pattern": {"q_proj": 3}, "modules_to_save": []}
    await backend.load_adapter("a", write_adapter(tmp_path / "a", **plain))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), r"adapter_config\.json: the file cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"weights cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"cut"), r"weights cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "no valid JSON"),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff\xfe"), "no valid JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no JSON object"),
    ],
)
async def test_damaged_files(
    backend: VllmBackend, double: VllmDouble, a: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(a)
    with pytest.raises(AdapterDamaged, match=message):
        await backend.load_adapter("a", a)
    assert double.requests == []


async def test_a_server_that_loads_nothing_while_it_runs(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    double.updating = False
    with pytest.raises(BackendError, match=r"loads no adapters while it runs\. .*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        await backend.load_adapter("a", a)
    double.adapters["a"] = (str(a), weights(a))  # --lora-modules a=PATH
    await backend.load_adapter("a", a)
    assert (await backend.generate([ask("who", "a")]))[0].adapter == "a"
    await backend.unload_adapter("a")
    assert await backend.adapters() == []


async def test_other_refusals_say_what_the_server_said(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    said = {"error": {"message": "no module fits", "type": "InternalServerError", "code": 500}}
    double.fail("/v1/load_lora_adapter", 500, said)
    with pytest.raises(AdapterError, match="does not take 'a': no module fits"):
        await backend.load_adapter("a", a)
    double.fail("/v1/load_lora_adapter", 500, said)
    double.healthy = False  # not the adapter's fault
    with pytest.raises(BackendUnavailable, match="no module fits"):
        await backend.load_adapter("a", a)
    double.healthy = True
    double.fail("/v1/load_lora_adapter", 0, b"")
    with pytest.raises(BackendUnavailable, match="cut"):
        await backend.load_adapter("a", a)
    assert await backend.adapters() == []
    await backend.load_adapter("a", a)


async def test_a_fingerprint_survives_json(backend: VllmBackend, double: VllmDouble, a: Path) -> None:
    made = await fingerprint_of(double, backend, a)
    await backend.load_adapter("a", a, Fingerprint.model_validate(json.loads(made.model_dump_json())))
