"""Answering by a route: what is put into the prompt, which adapter is on, and what comes back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.distil.dialogue import general_messages, memory_messages
from rag_tuned_memory.errors import AdapterNotLoaded, AdapterNotServable
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.recall.prompt import assemble
from rag_tuned_memory.recall.recollection import Recollection
from rag_tuned_memory.routing.base import Answer, Decision, Features, Route, Routing
from rag_tuned_memory.routing.conversation import abstained
from rag_tuned_memory.routing.router import Router
from rag_tuned_memory.routing.rules import after_answer
from rag_tuned_memory.serving.base import Generation, InferenceBackend, Request
from rag_tuned_memory.serving.tokens import token_counter
from rag_tuned_memory.store.base import NO_FILTER, Filter


@dataclass(frozen=True, slots=True)
class AnswerChunk:
    """A piece of a streamed answer; the last one carries the whole ``answer``.

    The first one has ``begun``, what is known before anything is said: route, reason, evidence, adapter, no text.
    """

    text: str
    answer: Answer | None = None
    begun: Answer | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is recalled and said."""

    k: int = 4
    token_budget: int = 320
    max_new_tokens: int = 48
    where: Filter = NO_FILTER


@dataclass(frozen=True, slots=True)
class _Plan:
    """One query, decided: ``request`` is None where nothing is to be generated."""

    query: str
    decision: Decision
    found: Recollection
    request: Request | None


class Answerer:
    """Answers queries: recalls, routes, asks the model."""

    def __init__(self, recall: Recall, backend: InferenceBackend, live: LiveAdapters) -> None:
        self._recall = recall
        self._backend = backend
        self._live = live
        self._router = Router(recall, live)

    async def answer(
        self,
        namespace: str,
        query: str,
        *,
        route: Route | None = None,
        k: int = 4,
        token_budget: int = 320,
        where: Filter = NO_FILTER,
        max_new_tokens: int = 48,
    ) -> Answer:
        """Answer one query; see ``answer_many``."""
        limits = Limits(k, token_budget, max_new_tokens, where)
        return (await self._answers(namespace, [query], route, limits))[0]

    async def answer_many(
        self,
        namespace: str,
        queries: Sequence[str],
        *,
        route: Route | None = None,
        k: int = 4,
        token_budget: int = 320,
        where: Filter = NO_FILTER,
        max_new_tokens: int = 48,
    ) -> list[Answer]:
        """Answers in the order of the queries, generated in batches.

        ``route`` None lets the router decide; a given one is taken as it is. At most ``k`` passages and
        ``token_budget`` tokens of recalled text are put into a prompt.

        Raises:
            AdapterNotServable: a given route needs an adapter and none serves.
            InvalidInput: an empty query.
        """
        return await self._answers(namespace, queries, route, Limits(k, token_budget, max_new_tokens, where))

    async def decide(
        self,
        namespace: str,
        query: str,
        *,
        task: bool = False,
        k: int = 4,
        token_budget: int | None = 320,
        where: Filter = NO_FILTER,
    ) -> Routing:
        """Recall and route one query, or one ``task`` of an agent, and generate nothing."""
        found = await self._recall.recall(
            namespace, query, k=k, token_budget=token_budget, where=where, count_tokens=token_counter(self._backend)
        )
        router = self._router
        decision = await (router.decide_task(namespace, found) if task else router.decide(namespace, query, found))
        return Routing(decision=decision, recollection=found)

    async def stream(
        self,
        namespace: str,
        query: str,
        *,
        route: Route | None = None,
        k: int = 4,
        token_budget: int = 320,
        where: Filter = NO_FILTER,
        max_new_tokens: int = 48,
    ) -> AsyncIterator[AnswerChunk]:
        """As ``answer``, text as it is generated. There is no second try: what was said cannot be unsaid."""
        started = time.monotonic()
        plan = await self._plan(namespace, query, route, Limits(k, token_budget, max_new_tokens, where))
        yield AnswerChunk("", begun=_begun(plan))
        if plan.request is None:
            answer = _answer(plan, None, time.monotonic() - started)
            yield AnswerChunk(answer.text)
            yield AnswerChunk("", answer)
            return
        async for chunk in self._backend.stream(plan.request):
            if chunk.text:
                yield AnswerChunk(chunk.text)
            if chunk.generation:
                yield AnswerChunk("", _answer(plan, chunk.generation, time.monotonic() - started))

    async def _answers(
        self, namespace: str, queries: Sequence[str], route: Route | None, limits: Limits
    ) -> list[Answer]:
        started = time.monotonic()
        plans = [await self._plan(namespace, query, route, limits) for query in queries]
        generations = await self._generate(namespace, plans)
        if route is None:
            plans, generations = await self._second_tries(namespace, plans, generations, limits)
        seconds = (time.monotonic() - started) / max(1, len(queries))
        return [_answer(plan, done, seconds) for plan, done in zip(plans, generations, strict=True)]

    async def _plan(self, namespace: str, query: str, route: Route | None, limits: Limits) -> _Plan:
        found = await self._recall.recall(
            namespace,
            query,
            k=limits.k,
            token_budget=limits.token_budget,
            where=limits.where,
            count_tokens=token_counter(self._backend),
        )
        if route is None:
            decision = await self._router.decide(namespace, query, found)
        else:
            decision = Decision(route=route, reason="asked for", features=Features(big_picture=False))
        return await self._planned(namespace, query, decision, found, limits)

    async def _planned(
        self, namespace: str, query: str, decision: Decision, found: Recollection, limits: Limits
    ) -> _Plan:
        needs_evidence = decision.route is Route.RETRIEVAL
        if decision.abstain or (needs_evidence and not found.results):
            empty = {} if decision.abstain else {"abstain": True, "reason": f"{decision.reason}; nothing was recalled"}
            return _Plan(query, decision.model_copy(update=empty), found, None)
        adapter = None
        if decision.route in (Route.TUNED, Route.BOTH):
            manifest = await self._live.current(namespace)
            if manifest is None:
                raise AdapterNotServable(
                    f"no adapter serves namespace {namespace!r}, so nothing can answer by the route {decision.route}",
                    remedy="Distil one (`rtm distil`), or let the router choose.",
                )
            adapter = manifest.name
        context = assemble(found) if decision.route in (Route.RETRIEVAL, Route.BOTH) else ""
        is_general = decision.route is Route.NONE
        messages = general_messages(query) if is_general else memory_messages(query, context)
        return _Plan(query, decision, found, Request(messages, adapter, limits.max_new_tokens))

    async def _generate(self, namespace: str, plans: Sequence[_Plan]) -> list[Generation | None]:
        requests = [plan.request for plan in plans if plan.request]
        try:
            done = iter(await self._backend.generate(requests) if requests else [])
        except AdapterNotLoaded:  # replaced by another process, or the server was restarted
            serving = await self._live.refresh(namespace)
            if serving is None:
                raise
            renewed = [replace(one, adapter=serving.name) if one.adapter else one for one in requests]
            done = iter(await self._backend.generate(renewed))
        return [next(done) if plan.request else None for plan in plans]

    async def _second_tries(
        self, namespace: str, plans: list[_Plan], generations: list[Generation | None], limits: Limits
    ) -> tuple[list[_Plan], list[Generation | None]]:
        """Where a tuned answer looks like a guess, ask again beside the evidence; the surer answer stands."""
        again: dict[int, _Plan] = {}
        for position, (plan, done) in enumerate(zip(plans, generations, strict=True)):
            if done is None or plan.decision.route is not Route.TUNED:
                continue
            measured = {"entropy": done.entropy, "confidence": done.confidence}
            features = plan.decision.features.model_copy(update=measured)
            decision = plan.decision.model_copy(update={"features": features})
            plans[position] = _Plan(plan.query, decision, plan.found, plan.request)
            if (better := after_answer(decision, done.confidence)) and plan.found.results:
                again[position] = await self._planned(namespace, plan.query, better, plan.found, limits)
        for position, second in zip(again, await self._generate(namespace, list(again.values())), strict=True):
            first = generations[position]
            if first and second and second.confidence > first.confidence:
                plans[position], generations[position] = again[position], second
        return plans, generations


def _begun(plan: _Plan) -> Answer:
    decision = plan.decision
    shown = decision.route in (Route.RETRIEVAL, Route.BOTH)
    return Answer(
        text="",
        route=decision.route,
        abstained=plan.request is None,
        reason=decision.reason,
        features=decision.features,
        adapter=plan.request.adapter if plan.request else None,
        evidence=plan.found if shown else None,
    )


def _answer(plan: _Plan, done: Generation | None, seconds: float) -> Answer:
    begun = _begun(plan)
    if done is None:
        return begun.model_copy(update={"text": abstained(plan.decision), "seconds": seconds})
    said = {
        "text": done.text.strip(),
        "adapter": done.adapter,
        "prompt_tokens": done.prompt_tokens,
        "answer_tokens": len(done.tokens),
        "seconds": seconds,
    }
    return begun.model_copy(update=said)
