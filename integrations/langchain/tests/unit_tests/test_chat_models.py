from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, FunctionMessage, HumanMessage, SystemMessage

from incidents import episode
from langchain_rag_tuned_memory import ChatRagTuned
from rag_tuned_memory import Memories, Memory, Settings
from rag_tuned_memory.distil.dialogue import memory_messages, system_prompt
from rag_tuned_memory.distil.learned import LearnedFact
from rag_tuned_memory.errors import (
    AdapterNotFound,
    AdapterNotServable,
    BackendUnavailable,
    InvalidInput,
    InvalidNamespace,
    PromptTooLong,
)
from rag_tuned_memory.recall.prompt import OPENING, assemble
from rag_tuned_memory.serving.base import Request
from rag_tuned_memory.serving.scripted import ScriptedBackend
from served_adapter import register

QUESTION = "which disk is full?"
BIG = "how many incidents were there in all?"
TALK = [SystemMessage("be brief"), HumanMessage("hi"), AIMessage("hello"), HumanMessage(QUESTION)]


@pytest.fixture
def filled(memory: Memory) -> Memory:
    memory.record(episode(1))
    return memory


@pytest.fixture
def adapter(filled: Memory, tmp_path: Path) -> str:
    fact = LearnedFact(fact_id="f", kind="global", question=BIG, answer="1", trajectory_ids=())
    name = register(filled.registry, "operations", tmp_path, ["one"], sequence=1, facts=[fact]).name
    filled.registry.promote(name, "good")
    return name


def both(chat: ChatRagTuned, asked: Any, **kwargs: Any) -> list[AIMessage]:
    """What each of the four ways to ask answers."""

    async def gathered() -> AIMessageChunk:
        whole: AIMessageChunk | None = None
        async for chunk in chat.astream(asked, **kwargs):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return whole

    streamed: AIMessageChunk | None = None
    for chunk in chat.stream(asked, **kwargs):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    return [
        chat.invoke(asked, **kwargs),
        asyncio.run(chat.ainvoke(asked, **kwargs)),
        streamed,
        asyncio.run(gathered()),
    ]


class TestByRoute:
    def test_a_question_alone_is_answered_as_the_memory_answers(self, filled: Memory) -> None:
        answer, found = filled.answer(QUESTION), filled.recall(QUESTION, k=4, token_budget=320)
        for message in both(ChatRagTuned(memory=filled), QUESTION):
            assert message.content == answer.text == "no idea"
            assert message.response_metadata == {
                "model_provider": "rag-tuned-memory",
                "model_name": "SmolLM2-135M-Instruct",
                "adapter": None,
                "finish_reason": "stop",
                "route": "retrieval",
                "reason": answer.reason,
                "abstained": False,
                "evidence": [found.results[0].trajectory_id],
            }
            assert message.usage_metadata == {
                "input_tokens": answer.prompt_tokens,
                "output_tokens": 2,
                "total_tokens": answer.prompt_tokens + 2,
            }

    def test_in_the_form_that_was_taught(self, filled: Memory, backend: ScriptedBackend) -> None:
        both(ChatRagTuned(memory=filled, k=2), QUESTION)
        context = assemble(filled.recall(QUESTION, k=2, token_budget=320))
        assert {request.messages for request in backend.requests} == {memory_messages(QUESTION, context)}
        assert {request.max_new_tokens for request in backend.requests} == {48}

    def test_a_conversation_goes_whole_to_the_one_that_was_chosen(
        self, filled: Memory, backend: ScriptedBackend
    ) -> None:
        for message in both(ChatRagTuned(memory=filled, max_tokens=9), TALK):
            assert message.content == "no idea"
            assert message.response_metadata["route"] == "retrieval"
            assert message.response_metadata["evidence"]
        for request in backend.requests:
            system, *rest = request.messages
            assert system.content.startswith(f"{system_prompt()}\nbe brief\n{OPENING}")
            assert [(one.role, one.content) for one in rest] == [
                ("user", "hi"),
                ("assistant", "hello"),
                ("user", QUESTION),
            ]
            assert request.max_new_tokens == 9

    def test_where_the_memory_has_nothing_it_says_so(self, filled: Memory, backend: ScriptedBackend) -> None:
        for asked in (
            "what did we do about INC-9999?",
            [SystemMessage("be brief"), HumanMessage("what did we do about INC-9999?")],
        ):
            for message in both(ChatRagTuned(memory=filled), asked):
                assert "INC-9999" in str(message.content)
                assert message.response_metadata["abstained"] is True
                assert message.response_metadata["evidence"] == []
                assert message.usage_metadata == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        assert backend.requests == []

    def test_what_needs_no_memory_goes_to_the_base_as_it_is(self, memory: Memory, backend: ScriptedBackend) -> None:
        talk = [SystemMessage("be brief"), HumanMessage("say hello")]
        for message in both(ChatRagTuned(memory=memory), talk):
            assert message.response_metadata["route"] == "none"
        assert {tuple(one.content for one in request.messages) for request in backend.requests} == {
            ("be brief", "say hello")
        }

    @pytest.mark.parametrize("asked", [BIG, [SystemMessage("be brief"), HumanMessage(BIG)]])
    def test_the_tuned_model_answers_what_it_learned(
        self, filled: Memory, backend: ScriptedBackend, adapter: str, asked: Any
    ) -> None:
        for message in both(ChatRagTuned(memory=filled), asked):
            told = message.response_metadata
            assert (told["route"], told["adapter"], told["model_name"]) == ("tuned", adapter, adapter)
            assert told["evidence"] == []
            assert message.content == "yes the disk was full"
        assert all(OPENING not in request.messages[0].content for request in backend.requests)

    def test_without_a_question_there_is_nothing_to_route(self, filled: Memory) -> None:
        with pytest.raises(InvalidInput, match="no human message"):
            ChatRagTuned(memory=filled).invoke([SystemMessage("be brief")])
        assert ChatRagTuned(memory=filled, model="base").invoke([SystemMessage("be brief")]).content == "no idea"


class TestByName:
    @pytest.mark.parametrize("name", ["base", "SmolLM2-135M-Instruct"])
    def test_the_base_takes_the_conversation_as_it_is(
        self, filled: Memory, backend: ScriptedBackend, name: str
    ) -> None:
        for message in both(ChatRagTuned(memory=filled, temperature=0.7, seed=3, stop=["zz"]), TALK, model=name):
            assert message.content == "no idea"
            assert message.response_metadata == {
                "model_provider": "rag-tuned-memory",
                "model_name": "SmolLM2-135M-Instruct",
                "adapter": None,
                "finish_reason": "stop",
            }
        for request in backend.requests:
            assert [one.content for one in request.messages] == ["be brief", "hi", "hello", QUESTION]
            assert (request.temperature, request.seed, request.stop, request.max_new_tokens) == (0.7, 3, ("zz",), 256)

    def test_an_adapter_takes_it_too(self, filled: Memory, adapter: str) -> None:
        for message in both(ChatRagTuned(memory=filled, model="base"), TALK, model=adapter):
            assert message.content == "yes the disk was full"
            assert message.response_metadata["model_name"] == message.response_metadata["adapter"] == adapter

    def test_bound_and_traced_by_the_name_of_the_call(self, filled: Memory, adapter: str) -> None:
        model = ChatRagTuned(memory=filled, model="base")
        assert model.bind(model=adapter).invoke(TALK).response_metadata["adapter"] == adapter
        assert model._get_ls_params(model=adapter)["ls_model_name"] == adapter
        assert model._get_ls_params()["ls_provider"] == "rag-tuned-memory"

    def test_a_name_of_nothing(self, filled: Memory) -> None:
        with pytest.raises(AdapterNotFound, match="gpt-9"):
            ChatRagTuned(memory=filled).invoke(TALK, model="gpt-9")

    def test_an_adapter_that_does_not_serve(self, filled: Memory, tmp_path: Path) -> None:
        name = register(filled.registry, "operations", tmp_path, ["one"]).name
        with pytest.raises(AdapterNotServable):
            ChatRagTuned(memory=filled).invoke(TALK, model=name)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"max_tokens": 0}, "max_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"k": 0}, "k: "),
            ({"temprature": 1}, "temprature.*Allowed are model,"),
            ({"where": {"tols": "df"}}, r"where\.tols"),
            ({"model": ""}, "model"),
            ({"tool_choice": "any"}, "no tools"),
        ],
    )
    def test_one_that_cannot_be_is_named(self, filled: Memory, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            ChatRagTuned(memory=filled).invoke(TALK, **arguments)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ([], "no human message"),
            (" ", "non-empty"),
            ([HumanMessage([{"type": "image_url", "image_url": {"url": "data:x"}}])], r"messages\.0: .*image_url"),
            ([FunctionMessage("x", name="f"), HumanMessage("x")], r"messages\.0: .*FunctionMessage"),
            ([ChatMessage("x", role="critic"), HumanMessage("x")], r"messages\.0: .*ChatMessage"),
        ],
    )
    def test_a_message_that_cannot_be_told_is_named(self, filled: Memory, asked: Any, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            ChatRagTuned(memory=filled).invoke(asked)

    def test_blocks_of_text_are_read_and_thoughts_left_out(self, filled: Memory, backend: ScriptedBackend) -> None:
        ChatRagTuned(memory=filled, model="base").invoke(
            [
                SystemMessage(["be brief", {"type": "text", "text": "and kind"}]),
                HumanMessage([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]),
                AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "three"}]),
                ChatMessage("four", role="user"),
            ]
        )
        assert [(one.role, one.content) for one in backend.requests[-1].messages] == [
            ("system", "be brief\n\nand kind"),
            ("user", "one\ntwo"),
            ("assistant", "three"),
            ("user", "four"),
        ]

    @pytest.mark.parametrize("asked", [QUESTION, TALK])
    @pytest.mark.parametrize("model", ["route", "base"])
    def test_stop_strings_end_an_answer(self, filled: Memory, asked: Any, model: str) -> None:
        chat = ChatRagTuned(memory=filled, model=model, stop=["never"])
        for message in both(chat, asked, stop=["idea", "zz"]):
            assert str(message.content).strip() == "no"

    def test_a_misspelt_field_is_not_swallowed(self, memory: Memory) -> None:
        with pytest.raises(ValueError, match=r"unknown: temprature; allowed are .*temperature"):
            ChatRagTuned(memory=memory, temprature=1, timeout=3)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="instance of Memory"):
            ChatRagTuned(memory="operations")  # type: ignore[arg-type]

    def test_tokens_are_estimated_without_a_tokenizer(self, filled: Memory) -> None:
        model = ChatRagTuned(memory=filled)
        assert model.get_num_tokens("which disk is full?") == 6
        assert model.get_num_tokens_from_messages([HumanMessage("which disk is full?")]) > 5


class TestManyNamespaces:
    @pytest.fixture(autouse=True)
    def _two(self, memories: Memories) -> None:
        for number, name in enumerate(("alice", "bob"), start=1):
            memories.of(name).record(episode(number))

    @staticmethod
    def config(name: str) -> Any:
        return {"configurable": {"namespace": name}}

    def evidence(self, memories: Memories, name: str) -> list[str]:
        return [memories.of(name).recall(QUESTION).results[0].trajectory_id]

    def test_each_way_of_naming_one(self, memories: Memories) -> None:
        model, wanted = ChatRagTuned(memory=memories), self.evidence(memories, "alice")
        messages = [
            *both(model, QUESTION, namespace="alice"),
            *both(model, QUESTION, config=self.config("alice")),
            *both(ChatRagTuned(memory=memories, namespace="alice"), QUESTION),
            model.bind(namespace="alice").invoke(QUESTION),
            model.with_config(self.config("alice")).invoke(QUESTION),
            (model | (lambda message: message)).invoke(QUESTION, self.config("alice")),
        ]
        assert [message.response_metadata["evidence"] for message in messages] == [wanted] * len(messages)

    def test_in_events(self, memories: Memories) -> None:
        model, wanted = ChatRagTuned(memory=memories), self.evidence(memories, "alice")
        stream = model.stream_events(QUESTION, self.config("alice"), version="v3")
        assert stream.output.response_metadata["evidence"] == wanted

        async def last() -> AIMessage:
            found = await model.astream_events(QUESTION, self.config("alice"), version="v3")
            return await found.output

        assert asyncio.run(last()).response_metadata["evidence"] == wanted

    def test_two_users_at_once(self, memories: Memories) -> None:
        model, users = ChatRagTuned(memory=memories), ["alice", "bob"] * 6
        configs = [self.config(user) for user in users]
        wanted = [self.evidence(memories, user) for user in users]
        for found in (
            model.batch([QUESTION] * 12, configs),
            asyncio.run(model.abatch([QUESTION] * 12, configs)),
        ):
            assert [message.response_metadata["evidence"] for message in found] == wanted

    def test_none_named_is_refused(self, memories: Memories) -> None:
        model = ChatRagTuned(memory=memories)
        for ask in (
            lambda: model.invoke(QUESTION),
            lambda: list(model.stream(QUESTION)),
            lambda: asyncio.run(model.ainvoke(QUESTION, {"configurable": {"user": "alice"}})),
        ):
            with pytest.raises(InvalidNamespace, match="names none"):
                ask()

    def test_an_empty_name_is_not_taken_for_none(self, memories: Memories) -> None:
        with pytest.raises(InvalidNamespace, match="non-empty"):
            ChatRagTuned(memory=memories, namespace="alice").invoke(QUESTION, namespace="")

    def test_another_namespace_s_adapter_is_not_found(self, memories: Memories, tmp_path: Path) -> None:
        name = register(memories.of("alice").registry, "alice", tmp_path, ["one"], sequence=1).name
        memories.of("alice").registry.promote(name, "good")
        model = ChatRagTuned(memory=memories)
        assert model.invoke(TALK, namespace="alice", model=name).response_metadata["adapter"] == name
        with pytest.raises(AdapterNotFound):
            model.invoke(TALK, namespace="bob", model=name)


class TestCache:
    @pytest.fixture(autouse=True)
    def _cache(self) -> Any:
        set_llm_cache(InMemoryCache())
        yield
        set_llm_cache(None)

    def test_what_was_forgotten_is_not_told_from_a_cache(self, filled: Memory) -> None:
        model = ChatRagTuned(memory=filled)
        evidence = model.invoke(QUESTION).response_metadata["evidence"]
        filled.forget(evidence)
        assert model.invoke(QUESTION).response_metadata["evidence"] == []

    def test_where_it_is_asked_for_it_is_each_namespace_s_own(self, memories: Memories) -> None:
        memories.of("alice").record(episode())
        model = ChatRagTuned(memory=memories, cache=True)
        told = [model.invoke(QUESTION, namespace=name).response_metadata for name in ("alice", "bob", "alice")]
        assert told[0]["evidence"]
        assert not told[1]["evidence"]
        assert told[2] == told[0]


class TestFailures:
    def test_a_prompt_too_long_is_known_to_both_libraries(self, settings: Settings) -> None:
        def refuse(request: Request) -> str:
            raise PromptTooLong("3000 tokens, and the model takes 2048", remedy="Shorten it.")

        with Memory("a", settings=settings, backend=ScriptedBackend(refuse)) as memory:
            model = ChatRagTuned(memory=memory, model="base")
            for ask in (lambda: model.invoke(TALK), lambda: list(model.stream(TALK))):
                with pytest.raises(ContextOverflowError, match=r"2048\. Shorten it"):
                    ask()
            with pytest.raises(PromptTooLong):
                asyncio.run(model.ainvoke(TALK))

    def test_the_backend_s_error_comes_through_and_fallbacks_take_over(self, settings: Settings) -> None:
        def gone(request: Request) -> str:
            raise BackendUnavailable("nobody there")

        other = ScriptedBackend(lambda request: "the other")
        with (
            Memory("a", settings=settings, backend=ScriptedBackend(gone)) as memory,
            Memory("a", settings=settings, backend=other) as second,
        ):
            model = ChatRagTuned(memory=memory, model="base")
            with pytest.raises(BackendUnavailable):
                model.invoke(TALK)
            safe = model.with_fallbacks([ChatRagTuned(memory=second, model="base")])
            assert safe.invoke(TALK).content == "the other"

    def test_leaving_a_stream_stops_the_model(self, settings: Settings) -> None:
        ended: list[bool] = []

        class Endless(ScriptedBackend):
            async def stream(self, request: Request) -> Any:
                try:
                    async for chunk in super().stream(request):
                        yield chunk
                        await asyncio.sleep(0.01)
                finally:
                    ended.append(True)

        backend = Endless(lambda request: "word " * 10_000)
        with Memory("a", settings=settings, backend=backend) as memory:
            model = ChatRagTuned(memory=memory, model="base", max_tokens=10_000)

            async def first() -> str:
                stream = model.astream(TALK)
                chunk = await anext(stream)
                await stream.aclose()  # type: ignore[attr-defined]
                return str(chunk.content)

            assert asyncio.run(first()) == "word"
            assert str(next(model.stream(TALK)).content) == "word"
            for _ in range(200):
                if len(ended) == 2:
                    break
                asyncio.run(asyncio.sleep(0.01))
            assert ended == [True, True]

    def test_cancelling_stops_the_model(self, settings: Settings) -> None:
        ended: list[bool] = []

        class Slow(ScriptedBackend):
            async def generate(self, requests: Any) -> Any:
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.append(True)

        with Memory("a", settings=settings, backend=Slow(lambda request: "")) as memory:

            async def cancelled() -> None:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(ChatRagTuned(memory=memory, model="base").ainvoke(TALK), 0.3)
                for _ in range(200):
                    if ended:
                        return
                    await asyncio.sleep(0.01)

            asyncio.run(cancelled())
        assert ended == [True]


def test_secrets_and_texts_are_in_no_repr(filled: Memory) -> None:
    model = ChatRagTuned(memory=filled)
    assert "Memory object" not in repr(model)
    assert "memory" not in model.asdict() if hasattr(model, "asdict") else True


def test_async_does_not_block_the_loop(settings: Settings) -> None:
    class Slow(ScriptedBackend):
        async def generate(self, requests: Any) -> Any:
            await asyncio.sleep(0.3)
            return await super().generate(requests)

    async def ticks() -> int:
        count = 0
        asked = asyncio.ensure_future(model.ainvoke(TALK))
        while not asked.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    with Memory("a", settings=settings, backend=Slow(lambda request: "x")) as memory:
        model = ChatRagTuned(memory=memory, model="base")
        assert asyncio.run(ticks()) > 10
