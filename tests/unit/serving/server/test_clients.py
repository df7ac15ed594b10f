"""The clients that people use, against a server of ours: huggingface_hub's and OpenAI's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from asking import ask
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import ValidationError

from rag_tuned_memory.serving.local import LocalBackend
from rag_tuned_memory.serving.server.service import Service

pytestmark = pytest.mark.anyio
QUESTION = [{"role": "user", "content": "What was the cause?"}]


@pytest.fixture
async def hub(url: str) -> AsyncIterator[AsyncInferenceClient]:
    async with AsyncInferenceClient(base_url=url) as client:
        yield client


@pytest.fixture
async def chat(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_hub_text_generation_with_details_and_adapters(hub: AsyncInferenceClient) -> None:
    answers = {}
    for name in (None, "ad1", "ad2"):
        answer = await hub.text_generation(
            "The cause was", details=True, adapter_id=name, max_new_tokens=6, return_full_text=False
        )
        assert answer.details is not None
        assert answer.details.generated_tokens == len(answer.details.tokens) == 6
        answers[name] = tuple(token.id for token in answer.details.tokens)
    assert len(set(answers.values())) == 3


async def test_hub_streams(hub: AsyncInferenceClient) -> None:
    stream = await hub.text_generation("The cause was", stream=True, details=True, adapter_id="ad1", max_new_tokens=6)
    told = [event async for event in stream]
    assert len(told) == 6
    assert told[-1].details is not None
    assert told[-1].details.finish_reason == "length"


async def test_hub_errors_are_typed(hub: AsyncInferenceClient) -> None:
    with pytest.raises(ValidationError, match="unknown adapter 'ad3'"):
        await hub.text_generation("x", adapter_id="ad3", max_new_tokens=2)
    with pytest.raises(ValidationError, match="unknown adapter 'ad3'"):
        async for _ in await hub.text_generation("x", stream=True, details=True, adapter_id="ad3", max_new_tokens=2):
            pass


async def test_hub_grammar(hub: AsyncInferenceClient) -> None:
    from huggingface_hub import TextGenerationInputGrammarType

    grammar = TextGenerationInputGrammarType(type="regex", value="[0-9]{4}")
    text = await hub.text_generation("In the year ", grammar=grammar, max_new_tokens=20, return_full_text=False)
    assert text.isdigit()
    assert len(text) == 4


async def test_hub_chat(hub: AsyncInferenceClient, url: str) -> None:
    for model in ("tgi", "ad1"):
        answer = await hub.chat_completion(QUESTION, model=model, max_tokens=5, temperature=0)
        assert answer.usage.completion_tokens == 5
    async with AsyncInferenceClient(model=url) as by_address:  # sends the model name "dummy"
        assert (await by_address.chat_completion(QUESTION, max_tokens=5)).choices[0].message.content is not None


async def test_openai_chat_with_logprobs_answers_as_the_local_backend_does(
    chat: openai.AsyncOpenAI, service: Service, tiny_model: Path, adapters: dict[str, Path]
) -> None:
    backend = LocalBackend(tiny_model, device="cpu", dtype="float32")
    for name, path in adapters.items():
        await backend.load_adapter(name, path)
    for name in (None, "ad1", "ad2"):
        (expected,) = await backend.generate([ask("What was the cause?", name, max_new_tokens=8)])
        answer = await chat.chat.completions.create(
            model=name or service.base_id,
            messages=QUESTION,  # type: ignore[arg-type]
            max_tokens=8,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
        )
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert [one.logprob for one in told.content] == pytest.approx(
            [token.logprob for token in expected.tokens], abs=1e-3
        )
        assert [len(one.top_logprobs) for one in told.content] == [3] * 8
        assert answer.model == (name or service.base_id)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == expected.prompt_tokens
    await backend.close()


async def test_openai_streams_and_tells_usage(chat: openai.AsyncOpenAI) -> None:
    whole = await chat.chat.completions.create(
        model="ad1",
        messages=QUESTION,  # type: ignore[arg-type]
        max_tokens=8,
        temperature=0,
    )
    chunks = [
        chunk
        async for chunk in await chat.chat.completions.create(
            model="ad1",
            messages=QUESTION,  # type: ignore[arg-type]
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == (whole.choices[0].message.content or text), "TGI tells no text that ends inside a character"


async def test_openai_completions(chat: openai.AsyncOpenAI) -> None:
    answer = await chat.completions.create(model="ad2", prompt=["The cause", "Who"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    chunks = [
        chunk
        async for chunk in await chat.completions.create(
            model="ad2", prompt="The cause", max_tokens=4, temperature=0, stream=True
        )
    ]
    assert len(chunks) == 4


async def test_openai_model_list(chat: openai.AsyncOpenAI, service: Service, adapters: dict[str, Path]) -> None:
    cards = {card.id: card.model_extra for card in (await chat.models.list()).data}
    assert list(cards) == [service.base_id, "ad1", "ad2"]
    assert cards["ad1"] == {"root": str(adapters["ad1"]), "parent": service.base_id, "max_model_len": 2000}
    assert cards[service.base_id] == {"root": service.base_id, "parent": None, "max_model_len": 2000}


async def test_openai_errors(chat: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await chat.chat.completions.create(model="nobody", messages=QUESTION, max_tokens=2)  # type: ignore[arg-type]
    assert "unknown adapter 'nobody'" in str(caught.value.body), "TGI's error is a text where OpenAI has an object"
    with pytest.raises(openai.APIError, match="unknown adapter 'nobody'"):
        async for _ in await chat.chat.completions.create(
            model="nobody",
            messages=QUESTION,  # type: ignore[arg-type]
            max_tokens=2,
            stream=True,
        ):
            pass
