from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from asking import QUESTIONS, about_context, ask, assert_same

from rag_tuned_memory.errors import (
    AdapterNotLoaded,
    BackendError,
    BackendUnavailable,
    InvalidInput,
    ModelIntegrityError,
    ModelNotPulled,
    PromptTooLong,
)
from rag_tuned_memory.serving.base import Generation, Message, Request
from rag_tuned_memory.serving.local import LocalBackend

pytestmark = pytest.mark.anyio


async def one_by_one(backend: LocalBackend, requests: list[Request]) -> list[Generation]:
    return [(await backend.generate([request]))[0] for request in requests]


async def test_greedy_answers_are_those_of_transformers(backend: LocalBackend, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for question in QUESTIONS[:3]:
        (answer,) = await backend.generate([ask(question)])
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        with torch.no_grad():
            expected = model.generate(
                prompt, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        new = expected.sequences[0, prompt.shape[1] :]
        assert [token.id for token in answer.tokens] == new.tolist()
        for token, logits in zip(answer.tokens, expected.logits, strict=True):
            distribution = torch.distributions.Categorical(logits=logits[0].float())
            assert token.logprob == pytest.approx(distribution.log_prob(torch.tensor(token.id)).item(), abs=1e-3)
            assert token.entropy == pytest.approx(distribution.entropy().item(), abs=1e-3)
        assert answer.prompt_tokens == prompt.shape[1]
        assert answer.text == "".join(token.text for token in answer.tokens)


async def test_the_models_thread_ends_when_idle_and_comes_back(backend: LocalBackend) -> None:
    (first,) = await backend.generate([ask(QUESTIONS[0])])
    for thread in threading.enumerate():
        if thread.name == "rtm-model":
            await anyio.to_thread.run_sync(thread.join, 20)
            assert not thread.is_alive()
    (again,) = await backend.generate([ask(QUESTIONS[0])])
    assert_same(first, again)


async def test_a_mixed_batch_answers_as_single_requests_do(
    backend: LocalBackend, adapter_a: Path, adapter_b: Path
) -> None:
    await backend.load_adapter("team/x.y@1", adapter_a)
    await backend.load_adapter("b-v2", adapter_b)
    requests = [ask(question, name) for question in QUESTIONS for name in (None, "team/x.y@1", "b-v2")]
    together = await backend.generate(requests)
    alone = await one_by_one(backend, requests)
    for left, right in zip(together, alone, strict=True):
        assert_same(left, right)
    assert len({answer.text for answer in alone[:3]}) == 3, "base and adapters answer differently"


async def test_adapters_compute_what_peft_computes(backend: LocalBackend, tiny_model: Path, adapter_a: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, adapter_a).merge_and_unload()
    await backend.load_adapter("a", adapter_a)
    (score,) = await backend.score(ask("who", "a"), ["the disk was full"])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who"}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer("the disk was full")["input_ids"]
    with torch.no_grad():
        logprobs = merged(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    expected = [logprobs[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]
    assert score == pytest.approx(expected, abs=1e-3)


async def test_concurrent_tasks_share_batches(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend.generate([ask("warm")])
    sizes: list[int] = []
    engine = backend._loaded()
    logits = engine.logits
    monkeypatch.setattr(
        engine, "logits", lambda batch, *a, **k: (sizes.append(len(batch.ids)), logits(batch, *a, **k))[1]
    )
    answers: dict[int, Generation] = {}

    async def one(index: int) -> None:
        (answers[index],) = await backend.generate([ask(QUESTIONS[index % 5], max_new_tokens=30)])

    async with anyio.create_task_group() as group:
        for index in range(20):
            group.start_soon(one, index)
    assert max(sizes) == 20
    assert len(sizes) <= 40, f"20 answers of 30 tokens in steps of {sizes} rows"
    for index in range(5):
        assert_same(answers[index], answers[index + 5])


async def test_limits_split_batches_without_changing_answers(
    make_backend: Callable[..., LocalBackend], backend: LocalBackend
) -> None:
    narrow = make_backend(max_batch_size=2, max_batch_tokens=100)
    requests = [ask(question) for question in QUESTIONS]
    for left, right in zip(await narrow.generate(requests), await backend.generate(requests), strict=True):
        assert_same(left, right)


async def test_a_shared_prefix_changes_nothing_but_the_work(
    backend: LocalBackend, adapter_a: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.load_adapter("a", adapter_a)
    plain = [about_context(question, name) for question in QUESTIONS for name in (None, "a")]
    sharing = [about_context(question, name, shared_prefix=1) for question in QUESTIONS for name in (None, "a")]
    expected = await backend.generate(plain)
    engine = backend._loaded()
    columns: list[int] = []
    logits = engine.logits
    monkeypatch.setattr(
        engine, "logits", lambda batch, *a, **k: (columns.append(batch.ids.numel()), logits(batch, *a, **k))[1]
    )
    found = await backend.generate(sharing)
    for left, right in zip(found, expected, strict=True):
        assert_same(left, right)
    prefix = max(columns)
    assert columns.count(prefix) == 2, "the prefix is computed once for each adapter"
    assert sum(columns) < sum(answer.prompt_tokens for answer in expected)
    columns.clear()
    await backend.generate(sharing[:1])
    assert prefix not in columns, "a later request finds the prefix"


async def test_a_prefix_in_bfloat16_stays_near(make_backend: Callable[..., LocalBackend]) -> None:
    backend = make_backend(dtype="bfloat16")
    completions = ["the disk was full", "because"]
    expected = await backend.score(about_context("Why?"), completions)
    found = await backend.score(about_context("Why?", shared_prefix=1), completions)
    assert backend._loaded()._prefixes, "the prefix is shared in this dtype too"
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, abs=0.1)


async def test_a_short_or_unequal_prefix_is_not_shared(backend: LocalBackend) -> None:
    request = ask("hello", shared_prefix=1)
    assert_same((await backend.generate([request]))[0], (await backend.generate([ask("hello")]))[0])
    assert not backend._loaded()._prefixes


async def test_scores_are_the_generated_log_probabilities(backend: LocalBackend, adapter_a: Path) -> None:
    await backend.load_adapter("a", adapter_a)
    for name in (None, "a"):
        scores = await backend.score(ask("why", name), ["because", "", "the disk was full again", "b"])
        assert scores[1] == ()
        alone = [(await backend.score(ask("why", name), [text]))[0] for text in ("because", "the disk was full again")]
        assert scores[0] == pytest.approx(alone[0], abs=1e-3)
        assert scores[2] == pytest.approx(alone[1], abs=1e-3)
        assert all(value < 0 for value in scores[2])
    assert await backend.score(ask("why"), []) == []


async def test_streams_give_whole_characters_and_the_same_answer(backend: LocalBackend) -> None:
    for question in QUESTIONS:
        request = ask(question, max_new_tokens=40)
        chunks = [chunk async for chunk in backend.stream(request)]
        (answer,) = await backend.generate([request])
        final = chunks[-1].generation
        assert final is not None
        assert_same(final, answer)
        assert "".join(chunk.text for chunk in chunks) == final.text
        assert [chunk.generation for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_stop_strings_end_the_answer_before_them(backend: LocalBackend) -> None:
    (full,) = await backend.generate([ask("hello", max_new_tokens=30)])
    stop = full.tokens[4].text or full.tokens[5].text
    request = ask("hello", max_new_tokens=30, stop=(stop,))
    (cut,) = await backend.generate([request])
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert len(cut.tokens) < 30
    assert "".join([chunk.text async for chunk in backend.stream(request)]) == cut.text


async def test_the_end_token_ends_the_answer(make_backend: Callable[..., LocalBackend]) -> None:
    backend = make_backend()
    (full,) = await backend.generate([ask("hello")])
    backend._loaded().model.end_ids = frozenset([full.tokens[3].id])
    (cut,) = await backend.generate([ask("hello")])
    assert (cut.finish_reason, len(cut.tokens)) == ("stop", 4)
    assert cut.text == "".join(token.text for token in full.tokens[:3])
    assert full.finish_reason == "length"


async def test_sampling_is_the_seeds_alone(backend: LocalBackend) -> None:
    hot = [ask(QUESTIONS[1], temperature=1.5, seed=seed) for seed in (1, 2)]
    (alone,) = await backend.generate(hot[:1])
    first, second, *_ = await backend.generate([*hot, ask("hello"), ask("who", temperature=1.0)])
    assert_same(first, alone)
    assert first.text != second.text
    unseeded = await backend.generate([ask("hello", temperature=2.0, max_new_tokens=30)] * 2)
    assert unseeded[0].text != unseeded[1].text


async def test_a_closed_stream_stops_and_the_backend_goes_on(backend: LocalBackend) -> None:
    stream = backend.stream(ask("hello", max_new_tokens=1500))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    began = time.perf_counter()
    await backend.generate([ask("who", max_new_tokens=1)])
    assert time.perf_counter() - began < 1.0, "1,500 tokens would take longer"


async def test_cancelling_leaves_the_backend_usable(backend: LocalBackend) -> None:
    (expected,) = await backend.generate([ask("hello")])
    with anyio.move_on_after(0.05) as scope:
        await backend.generate([ask(question, max_new_tokens=1500) for question in QUESTIONS * 8])
    assert scope.cancelled_caught
    began = time.perf_counter()
    (answer,) = await backend.generate([ask("hello")])
    assert time.perf_counter() - began < 1.0
    assert_same(answer, expected)


async def test_the_event_loop_is_not_blocked(backend: LocalBackend) -> None:
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - began)

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        began = time.perf_counter()
        await backend.generate([ask(question, max_new_tokens=150) for question in QUESTIONS])
        took = time.perf_counter() - began
        group.cancel_scope.cancel()
    assert worst < took / 2


async def test_a_blocked_event_loop_does_not_hold_up_others(backend: LocalBackend) -> None:
    """Another thread's loop gets its answer while this loop, which reads a stream, is busy."""
    stream = backend.stream(ask("hello", max_new_tokens=200))
    await anext(stream)  # type: ignore[call-overload]
    found: list[Generation] = []

    def other() -> None:
        found.extend(anyio.run(backend.generate, [ask("who")]))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(timeout=20)  # blocks this loop on purpose
    assert found, "the other loop waited for this one"
    await stream.aclose()  # type: ignore[attr-defined]


async def test_one_bad_request_fails_its_call_only(backend: LocalBackend) -> None:
    results: list[object] = []

    async def good() -> None:
        results.extend(await backend.generate([ask("hello")]))

    async with anyio.create_task_group() as group:
        group.start_soon(good)
        with pytest.raises(AdapterNotLoaded, match=r"no adapter 'ghost' is loaded \(loaded: none\)"):
            await backend.generate([ask("hello"), ask("hello", "ghost")])
    assert len(results) == 1


async def test_a_failing_model_is_reported_and_survived(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend.generate([ask("hello")])
    with monkeypatch.context() as patch:

        def explode(*_: object, **__: object) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(backend._loaded(), "logits", explode)
        with pytest.raises(BackendError, match="the model failed: RuntimeError: out of memory"):
            await backend.generate([ask("hello")])
        with pytest.raises(BackendError, match="out of memory"):
            await backend.score(ask("hello"), ["x"])
    assert await backend.generate([ask("hello")])


async def test_prompts_beyond_the_context_name_the_limit(
    make_backend: Callable[..., LocalBackend], tmp_path: Path
) -> None:
    from tiny_model import build_tiny_model

    backend = make_backend(build_tiny_model(tmp_path / "short", context=128))
    with pytest.raises(PromptTooLong, match=r"context of 128.*Shorten the prompt to 116 tokens"):
        await backend.generate([ask("x y " * 100)])
    with pytest.raises(PromptTooLong, match="context of 128"):
        await backend.score(ask("x"), ["x y " * 100])
    (answer,) = await backend.generate([ask("x", max_new_tokens=1)])
    room = 128 - answer.prompt_tokens
    assert len((await backend.generate([ask("x", max_new_tokens=room)]))[0].tokens) == room
    with pytest.raises(PromptTooLong):
        await backend.generate([ask("x", max_new_tokens=room + 1)])


async def test_closing_ends_what_runs_and_what_comes_later(make_backend: Callable[..., LocalBackend]) -> None:
    backend = make_backend()
    await backend.generate([ask("warm")])
    errors: list[Exception] = []

    async def long() -> None:
        try:
            await backend.generate([ask(question, max_new_tokens=1900) for question in QUESTIONS * 8])
        except BackendUnavailable as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(long)
        await anyio.sleep(0.05)
        await backend.close()
    assert len(errors) == 1
    await backend.close()
    for call in (backend.generate([ask("x")]), backend.score(ask("x"), ["y"]), backend.adapters()):
        with pytest.raises(BackendUnavailable, match="was closed"):
            await call
    with pytest.raises(BackendUnavailable):
        await backend.count_tokens(["x"])
    with pytest.raises(BackendUnavailable):
        await anext(backend.stream(ask("x")))  # type: ignore[call-overload]


async def test_it_serves_several_event_loops(backend: LocalBackend) -> None:
    answers: list[Generation] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(anyio.run(backend.generate, [ask("hello")]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert len(answers) == 4
    for answer in answers[1:]:
        assert_same(answer, answers[0])


async def test_tokens_are_counted_without_weights(backend: LocalBackend) -> None:
    counts = await backend.count_tokens(["", "the cause", "<|im_end|>"])
    assert counts[0] == 0
    assert counts[2] > 1
    assert backend._engine is None
    with pytest.raises(InvalidInput, match="UTF-8"):
        await backend.count_tokens(["\ud800"])


async def test_identity_tells_models_apart(tiny_model: Path, tmp_path: Path) -> None:
    from tiny_model import build_tiny_model

    other = build_tiny_model(tmp_path / "tiny", seed=1)
    first, second = LocalBackend(tiny_model).base_model, LocalBackend(other).base_model
    assert first.startswith("tiny@")
    assert second.startswith("tiny@")
    assert first != second


async def test_missing_and_damaged_models_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotPulled, match=r"config\.json is missing.*rtm pull"):
        LocalBackend(tmp_path)
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    os.truncate(tmp_path / "model.safetensors", 2000)
    backend = LocalBackend(tmp_path)
    for _ in range(2):
        with pytest.raises(ModelIntegrityError, match=r"cannot be loaded.*Pull it again"):
            await backend.generate([ask("x")])
    await backend.close()


def test_importing_needs_no_torch_and_its_absence_is_named(tiny_model: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["peft"] = None
import anyio
from rag_tuned_memory.errors import MissingExtra
from rag_tuned_memory.serving.base import Message, Request
from rag_tuned_memory.serving.local import LocalBackend
async def main():
    backend = LocalBackend({str(tiny_model)!r})
    try:
        await backend.generate([Request((Message("user", "x"),))])
    except MissingExtra as error:
        print(error)
    await backend.close()
anyio.run(main)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert 'pip install "rag-tuned-memory[local]"' in found.stdout
    assert "transformers" in found.stdout


async def test_system_messages_are_kept(backend: LocalBackend) -> None:
    with_system = Request((Message("system", "Be kind."), Message("user", "hello")), max_new_tokens=12)
    first, second = await backend.generate([with_system, ask("hello")])
    assert first.text != second.text
