"""Requests that join and leave while others run: who waits for whom, and that nobody's answer depends on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from asking import QUESTIONS, about_context, ask, assert_same

from rag_tuned_memory.errors import BackendError, InvalidInput, PromptTooLong
from rag_tuned_memory.serving.base import Generation, Request
from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.local.asked import Sampling, Step, TokenRequest
from rag_tuned_memory.serving.local.cache import mixes
from tiny_model import build_random_adapter

pytestmark = pytest.mark.anyio


@pytest.fixture
def widths(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, int]]]:
    """Rows and columns of each forward pass from the first call on."""
    seen: list[tuple[int, int]] = []

    def watch() -> list[tuple[int, int]]:
        engine = backend._loaded()
        logits = engine.logits
        monkeypatch.setattr(
            engine, "logits", lambda batch, *a, **k: (seen.append(tuple(batch.mask.shape)), logits(batch, *a, **k))[1]
        )
        return seen

    return watch


async def steps_of(backend: LocalBackend, request: TokenRequest) -> list[Step]:
    return [step async for step in backend.steps(request)]


async def tokens(backend: LocalBackend, request: Request) -> TokenRequest:
    ids = tuple(await backend.folder.ids(request.messages))
    return TokenRequest(ids, request.adapter, request.max_new_tokens)


async def test_a_short_request_overtakes_a_long_one_that_runs(backend: LocalBackend) -> None:
    await backend.generate([ask("warm")])
    ended: list[str] = []
    begun = anyio.Event()

    async def long() -> None:
        async for _ in backend.stream(ask("hello", max_new_tokens=400)):
            begun.set()
        ended.append("long")

    async def short() -> None:
        await begun.wait()
        await backend.generate([ask("who", max_new_tokens=5)])
        ended.append("short")

    async with anyio.create_task_group() as group:
        group.start_soon(long)
        group.start_soon(short)
    assert ended == ["short", "long"]


async def test_whoever_joins_and_leaves_when_answers_stay_the_same(
    backend: LocalBackend, adapter_a: Path, adapter_b: Path, widths: Callable[[], list[tuple[int, int]]]
) -> None:
    await backend.load_adapter("a", adapter_a)
    await backend.load_adapter("b", adapter_b)
    chance = random.Random(7)
    requests = [
        ask(chance.choice(QUESTIONS), chance.choice([None, "a", "b"]), max_new_tokens=chance.choice([1, 3, 17, 60]))
        for _ in range(40)
    ]
    alone = [(await backend.generate([request]))[0] for request in requests]
    seen = widths()
    answers: dict[int, Generation] = {}

    async def one(index: int) -> None:
        await anyio.sleep(chance.random() * 0.5)
        (answers[index],) = await backend.generate([requests[index]])

    async with anyio.create_task_group() as group:
        for index in range(len(requests)):
            group.start_soon(one, index)
    for index, expected in enumerate(alone):
        assert_same(answers[index], expected)
    assert max(rows for rows, _ in seen) > 5


async def test_columns_that_nobody_has_a_token_in_are_dropped(
    backend: LocalBackend, widths: Callable[[], list[tuple[int, int]]]
) -> None:
    await backend.start()
    seen = widths()
    requests = [ask("word " * 30, max_new_tokens=5), ask("hello", max_new_tokens=20)]
    (long, short) = await backend.generate(requests)
    assert seen[0] == (2, long.prompt_tokens)
    assert seen[-1] == (1, short.prompt_tokens + 19)


async def test_prefixes_take_turns_and_join_their_own_kind(backend: LocalBackend, adapter_a: Path) -> None:
    await backend.load_adapter("a", adapter_a)
    requests = [
        about_context(question, name, shared_prefix=shared, max_new_tokens=25)
        for question in QUESTIONS[:4]
        for name in (None, "a")
        for shared in (0, 1)
    ]
    alone = [(await backend.generate([request]))[0] for request in requests]
    answers: dict[int, Generation] = {}

    async def one(index: int) -> None:
        await anyio.sleep(index * 0.02)
        (answers[index],) = await backend.generate([requests[index]])

    async with anyio.create_task_group() as group:
        for index in range(len(requests)):
            group.start_soon(one, index)
    for index, expected in enumerate(alone):
        assert_same(answers[index], expected)


async def test_the_first_in_line_is_not_overtaken_when_there_is_no_room(
    make_backend: Callable[..., LocalBackend],
) -> None:
    backend = make_backend(max_batch_tokens=400, max_batch_size=8)
    await backend.generate([ask("warm")])
    ended: list[int] = []

    async def one(length: int) -> None:
        await backend.generate([ask("hello", max_new_tokens=length)])
        ended.append(length)

    async with anyio.create_task_group() as group:
        for length in (200, 250, 20):  # the second does not fit beside the first; the third would
            group.start_soon(one, length)
            await anyio.wait_all_tasks_blocked()
    assert ended[0] == 200


async def test_adapters_load_while_a_request_runs(backend: LocalBackend, adapter_a: Path) -> None:
    (expected,) = await backend.generate([ask("hello", max_new_tokens=300)])
    answers: list[Generation] = []
    began = anyio.Event()

    async def long() -> None:
        stream = backend.stream(ask("hello", max_new_tokens=300))
        async for chunk in stream:
            began.set()
            if chunk.generation:
                answers.append(chunk.generation)

    async with anyio.create_task_group() as group:
        group.start_soon(long)
        await began.wait()
        await backend.load_adapter("a", adapter_a)
        (tuned,) = await backend.generate([ask("hello", "a")])
        await backend.unload_adapter("a")
        assert not answers, "nobody waited for the long one"
    assert_same(answers[0], expected)
    assert tuned.text != expected.text[: len(tuned.text)]


async def test_a_model_with_a_sliding_window_is_not_joined(
    make_backend: Callable[..., LocalBackend], tiny_model: Path, tmp_path: Path
) -> None:
    import shutil

    import torch
    from transformers import MistralConfig, MistralForCausalLM

    folder = tmp_path / "sliding"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        initializer_range=0.2,
        eos_token_id=2,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    backend = make_backend(folder)
    requests = [ask(question, max_new_tokens=30) for question in QUESTIONS[:3]]
    alone = [(await backend.generate([request]))[0] for request in requests]
    assert not mixes(backend._loaded().new_cache())
    answers: dict[int, Generation] = {}

    async def one(index: int) -> None:
        await anyio.sleep(index * 0.03)
        (answers[index],) = await backend.generate([requests[index]])

    async with anyio.create_task_group() as group:
        for index in range(3):
            group.start_soon(one, index)
    for index in range(3):
        assert_same(answers[index], alone[index])


async def test_adapters_that_touch_other_layers_and_ranks_mix(
    backend: LocalBackend, tiny_model: Path, adapter_a: Path, adapter_b: Path, tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = LoraConfig(r=3, target_modules=["q_proj"], use_rslora=True, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "q")
    await backend.load_adapter("q", tmp_path / "q")
    await backend.load_adapter("a", adapter_a)
    await backend.load_adapter("b", adapter_b)
    requests = [ask(question, name) for question in QUESTIONS[:3] for name in (None, "q", "a", "b")]
    for left, right in zip(
        await backend.generate(requests), [(await backend.generate([one]))[0] for one in requests], strict=True
    ):
        assert_same(left, right)


async def test_an_overflowing_adapter_harms_nobody_else(
    backend: LocalBackend, tiny_model: Path, adapter_a: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    wild = build_random_adapter(tiny_model, tmp_path / "wild", seed=5)
    tensors = {name: tensor * 1e30 for name, tensor in load_file(wild / "adapter_model.safetensors").items()}
    save_file(tensors, wild / "adapter_model.safetensors")
    await backend.load_adapter("wild", wild)
    await backend.load_adapter("a", adapter_a)
    (expected,) = await backend.generate([ask("hello", "a")])
    found = await backend.generate([ask("hello", "a"), ask("hello", "wild"), ask("hello")])
    assert_same(found[0], expected)


async def test_steps_are_the_tokens_of_generate(backend: LocalBackend, adapter_a: Path) -> None:
    await backend.load_adapter("a", adapter_a)
    for name in (None, "a"):
        request = ask("What was the cause?", name, max_new_tokens=20)
        (answer,) = await backend.generate([request])
        steps = await steps_of(backend, await tokens(backend, request))
        assert [step.id for step in steps] == [token.id for token in answer.tokens]
        assert [step.logprob for step in steps] == pytest.approx([token.logprob for token in answer.tokens], abs=1e-3)
        assert [step.finish for step in steps] == [None] * 19 + ["length"]
        assert steps[-1].answer == "" or steps[-1].answer == answer.text


async def test_scored_ids_are_the_generated_log_probabilities(backend: LocalBackend, adapter_a: Path) -> None:
    await backend.load_adapter("a", adapter_a)
    request = await tokens(backend, ask("who", "a"))
    steps = await steps_of(backend, request)
    ids = request.ids + tuple(step.id for step in steps)
    scores = await backend.score_ids(ids, "a")
    assert len(scores) == len(ids) - 1
    assert scores[-len(steps) :] == pytest.approx([step.logprob for step in steps], abs=1e-3)
    assert await backend.score_ids(ids[:1]) == ()


@pytest.mark.parametrize(
    ("sampling", "differs"),
    [
        (Sampling(temperature=1.0, top_k=1), False),
        (Sampling(temperature=1.0, top_p=1e-6), False),
        (Sampling(temperature=1e-4, seed=3), False),
        (Sampling(repetition_penalty=5.0), True),
        (Sampling(frequency_penalty=200.0), True),
        (Sampling(temperature=3.0, typical_p=0.95, seed=1), True),
    ],
)
async def test_sampling_warps_as_it_says(backend: LocalBackend, sampling: Sampling, differs: bool) -> None:
    plain = await tokens(backend, ask("hello hello hello", max_new_tokens=20))
    greedy = [step.id for step in await steps_of(backend, plain)]
    request = TokenRequest(plain.ids, max_new_tokens=20, sampling=sampling)
    steps = await steps_of(backend, request)
    assert ([step.id for step in steps] != greedy) == differs
    if sampling.top_k == 1:
        assert [step.logprob for step in steps] == [0.0] * 20, "the only token left is certain"
    if sampling.seed is not None:
        assert [step.id for step in await steps_of(backend, request)] == [step.id for step in steps]


async def test_the_most_likely_tokens_are_told(backend: LocalBackend) -> None:
    plain = await tokens(backend, ask("hello", max_new_tokens=5))
    asked = TokenRequest(plain.ids, max_new_tokens=5, top=3)
    for step in await steps_of(backend, asked):
        assert len(step.top) == 3
        assert step.top[0].id == step.id
        assert step.top[0].logprob == pytest.approx(step.logprob)
        assert step.top[0].logprob >= step.top[1].logprob >= step.top[2].logprob


async def test_stop_strings_stay_in_the_answer_of_steps(backend: LocalBackend) -> None:
    plain = await tokens(backend, ask("hello", max_new_tokens=30))
    full = await steps_of(backend, plain)
    at = next(index for index, step in enumerate(full) if index > 2 and step.text.strip())
    stop = full[at].text
    cut = await steps_of(backend, TokenRequest(plain.ids, max_new_tokens=30, stop=(stop,)))
    assert cut[-1].finish == "stop_sequence"
    assert "".join(step.text for step in cut).endswith(stop)
    assert len(cut) <= at + 1


async def test_the_end_token_is_shown_and_told(make_backend: Callable[..., LocalBackend]) -> None:
    backend = make_backend()
    plain = await tokens(backend, ask("hello", max_new_tokens=8))
    full = await steps_of(backend, plain)
    backend._loaded().model.end_ids = frozenset([full[3].id])
    cut = await steps_of(backend, plain)
    assert (len(cut), cut[-1].finish) == (4, "eos_token")
    limited = await steps_of(backend, TokenRequest(plain.ids, max_new_tokens=4))
    assert limited[-1].finish == "length", "as TGI says where both are true"


async def test_rows_that_cannot_be_joined_are_told_and_the_backend_goes_on(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.start()
    stream = backend.stream(ask("hello", max_new_tokens=1500))
    await anext(stream)  # type: ignore[call-overload]
    with monkeypatch.context() as patch:

        def explode(*_: Any) -> None:
            raise RuntimeError("no memory")

        patch.setattr("rag_tuned_memory.serving.local.decoding.join_caches", explode)
        with pytest.raises(BackendError, match="no memory"):
            await backend.generate([ask("who", max_new_tokens=5)])
        with pytest.raises(BackendError, match="no memory"):
            async for _ in stream:
                pass
    assert await backend.generate([ask("who", max_new_tokens=5)])


class Broken:
    """A constraint that gives up at its second token."""

    def __init__(self) -> None:
        self.count = 0

    def allow(self, logits: Any) -> Any:
        return logits

    def advance(self, token_id: int) -> None:
        self.count += 1
        if self.count == 2:
            raise RuntimeError("no way on")


async def test_a_constraint_that_fails_fails_alone(backend: LocalBackend) -> None:
    plain = await tokens(backend, ask("hello", max_new_tokens=60))
    found: list[Step] = []

    async def other() -> None:
        found.extend(await steps_of(backend, plain))

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        with pytest.raises(BackendError, match="no way on"):
            await steps_of(backend, TokenRequest(plain.ids, max_new_tokens=60, constraint=Broken()))
    assert len(found) == 60


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (TokenRequest(()), InvalidInput),
        (TokenRequest((1,), max_new_tokens=0), InvalidInput),
        (TokenRequest((1,), sampling=Sampling(temperature=-1)), InvalidInput),
        (TokenRequest((1,), max_new_tokens=5000), PromptTooLong),
    ],
)
async def test_impossible_token_requests_are_refused(
    backend: LocalBackend, request_: TokenRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await steps_of(backend, request_)


async def test_closed_steps_stop(backend: LocalBackend, widths: Callable[[], list[tuple[int, int]]]) -> None:
    plain = await tokens(backend, ask("hello", max_new_tokens=1500))
    await backend.start()
    seen = widths()
    stream = backend.steps(plain)
    await anext(stream)  # type: ignore[call-overload]
    await stream.aclose()  # type: ignore[attr-defined]
    await backend.generate([ask("who", max_new_tokens=1)])
    assert len(seen) < 1000
