"""The same questions, answered in six ways by the same base model: what memory is worth, by kind of question.

none          the base model alone
full_context  the base model with every episode in its prompt
retrieval     the base model beside what is recalled
tuned         the adapter, without any context
both          the adapter beside what is recalled
routed        whatever the router chooses, abstention included
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rag_tuned_memory.adapters.live import LiveAdapters
from rag_tuned_memory.distil.dialogue import general_messages, memory_messages
from rag_tuned_memory.distil.facts import is_correct
from rag_tuned_memory.distil.phrasing import is_abstention
from rag_tuned_memory.errors import AdapterNotServable, InvalidInput
from rag_tuned_memory.evaluation.full_context import FullContext, full_context
from rag_tuned_memory.evaluation.questions import KINDS, Question
from rag_tuned_memory.evaluation.results import ARMS, Arm, ArmRow, ArmsResult
from rag_tuned_memory.evaluation.stamp import code_hash, hash_of, machine, prompts_hash, versions
from rag_tuned_memory.recall.engine import Recall
from rag_tuned_memory.routing.answering import Answerer
from rag_tuned_memory.routing.base import Answer, Route
from rag_tuned_memory.serving.base import Generation, InferenceBackend, Request

_BATCH = 64
_ROUTES: Mapping[Arm, Route | None] = {
    "retrieval": Route.RETRIEVAL,
    "tuned": Route.TUNED,
    "both": Route.BOTH,
    "routed": None,
}

OnArm = Callable[[Arm, int, int], None]
"""Called with an arm, how many of its questions are answered, and how many there are."""


@dataclass(frozen=True, slots=True)
class ArmsLimits:
    """How much is recalled and said, and how many questions of a kind an arm is asked at most.

    ``full_context_tokens`` bounds the context of that arm; it is computed once for all questions, and older episodes
    are left out of it first. ``sample`` keeps the slow arms short: their questions are the first of each kind.
    """

    k: int = 4
    token_budget: int = 320
    max_new_tokens: int = 32
    full_context_tokens: int = 7_000
    sample: Mapping[Arm, int] | None = None


async def evaluate_arms(
    namespace: str,
    questions: Sequence[Question],
    *,
    recall: Recall,
    backend: InferenceBackend,
    live: LiveAdapters,
    arms: Sequence[Arm] = ARMS,
    limits: ArmsLimits | None = None,
    seed: int = 0,
    on_progress: OnArm | None = None,
) -> ArmsResult:
    """Ask ``questions`` in each arm and judge the answers; ``seed`` is only written into the stamp.

    An answer is right when it says the gold answer or an alias (``is_correct``), an unknown one when it is declined,
    and a general one when it is what the base model alone says, word for word.

    Raises:
        InvalidInput: no questions, one question twice, or an unknown arm.
        AdapterNotServable: an arm needs an adapter and none serves.
    """
    _check(questions, arms)
    if {"tuned", "both"} & set(arms) and await live.current(namespace) is None:
        raise AdapterNotServable(
            f"no adapter serves namespace {namespace!r}, so the arms 'tuned' and 'both' cannot be asked",
            remedy="Distil one first (`rtm distil`), or leave these arms out.",
        )
    limits = limits or ArmsLimits()
    experiment = _Experiment(namespace, recall, backend, live, limits)
    base = await experiment.base_answers([one for one in questions if one.kind == "general"])
    rows: list[ArmRow] = []
    for arm in arms:
        asked = _asked(questions, (limits.sample or {}).get(arm))
        done = 0
        for batch in _batches(asked):
            rows += [_judged(arm, one, given, base) for one, given in await experiment.ask(arm, batch)]
            done += len(batch)
            if on_progress:
                on_progress(arm, done, len(asked))
    return ArmsResult(
        rows=tuple(rows),
        notes=tuple(_notes(limits, arms, experiment.everything)),
        stamp=await _stamp(namespace, questions, experiment, seed),
    )


@dataclass(frozen=True, slots=True)
class _Given:
    """An answer, however it came about."""

    text: str
    abstained: bool = False
    route: str | None = None
    reason: str | None = None
    adapter: str | None = None
    answer_tokens: int = 0
    prompt_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0


class _Meter:
    """A backend that counts what each question (the prompt's last message) costs, first tries included."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self.calls: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    async def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Generate and count."""
        generations = await self._backend.generate(requests)
        for request, generation in zip(requests, generations, strict=True):
            self.calls[request.messages[-1].content] += 1
            self.tokens[request.messages[-1].content] += generation.prompt_tokens
        return generations

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _Experiment:
    """What all arms share."""

    def __init__(
        self, namespace: str, recall: Recall, backend: InferenceBackend, live: LiveAdapters, limits: ArmsLimits
    ) -> None:
        self.namespace, self.recall, self.backend, self.live, self.limits = namespace, recall, backend, live, limits
        self.everything: FullContext | None = None

    async def base_answers(self, questions: Sequence[Question]) -> dict[str, str]:
        """What the base model alone says, by question; in the batches in which the arms will ask."""
        said: dict[str, str] = {}
        for batch in _batches(questions):
            generations = await self.backend.generate([self._alone(question) for question in batch])
            said |= {one.text: done.text.strip() for one, done in zip(batch, generations, strict=True)}
        return said

    async def ask(self, arm: Arm, batch: Sequence[Question]) -> list[tuple[Question, _Given]]:
        """One arm's answers to one batch, in order."""
        meter = _Meter(self.backend)
        counted = cast(InferenceBackend, meter)
        if arm == "full_context" and self.everything is None:
            self.everything = await full_context(
                self.recall.store, self.namespace, self.backend, token_budget=self.limits.full_context_tokens
            )
        started = time.monotonic()
        if arm in _ROUTES:
            answers = await Answerer(self.recall, counted, self.live).answer_many(
                self.namespace,
                [question.text for question in batch],
                route=_ROUTES[arm],
                k=self.limits.k,
                token_budget=self.limits.token_budget,
                max_new_tokens=self.limits.max_new_tokens,
            )
            given = [_of_answer(answer) for answer in answers]
        else:
            make = self._alone if arm == "none" else self._with_everything
            given = [_of_generation(done) for done in await counted.generate([make(one) for one in batch])]
        seconds = (time.monotonic() - started) / len(batch)
        return [
            (one, replace(it, prompt_tokens=meter.tokens[one.text], calls=meter.calls[one.text], seconds=seconds))
            for one, it in zip(batch, given, strict=True)
        ]

    def _alone(self, question: Question) -> Request:
        return Request(general_messages(question.text), max_new_tokens=self.limits.max_new_tokens)

    def _with_everything(self, question: Question) -> Request:
        context = self.everything.text if self.everything else ""
        messages = memory_messages(question.text, context)
        return Request(messages, max_new_tokens=self.limits.max_new_tokens, shared_prefix=1)


def _check(questions: Sequence[Question], arms: Sequence[Arm]) -> None:
    if not questions:
        raise InvalidInput("there are no questions to ask", place="questions")
    twice = [text for text, count in Counter(question.text for question in questions).items() if count > 1]
    if twice:
        raise InvalidInput(f"asked twice: {twice[0]!r}", place="questions", remedy="Leave repetitions out.")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise InvalidInput(f"no arm is named {', '.join(unknown) or 'like that'}; there are {', '.join(ARMS)}")


def _asked(questions: Sequence[Question], most: int | None) -> list[Question]:
    """At most ``most`` of each kind, kinds together."""
    grouped = [[one for one in questions if one.kind == kind] for kind in KINDS]
    return [one for group in grouped for one in (group if most is None else group[:most])]


def _batches(questions: Sequence[Question]) -> list[list[Question]]:
    """General questions apart from the others: they are then computed in the same company in every arm."""
    grouped = [[one for one in questions if (one.kind == "general") is general] for general in (False, True)]
    return [group[start : start + _BATCH] for group in grouped for start in range(0, len(group), _BATCH)]


def _of_answer(answer: Answer) -> _Given:
    return _Given(
        text=answer.text,
        abstained=answer.abstained,
        route=answer.route,
        reason=answer.reason,
        adapter=answer.adapter,
        answer_tokens=answer.answer_tokens,
    )


def _of_generation(done: Generation) -> _Given:
    return _Given(text=done.text.strip(), adapter=done.adapter, answer_tokens=len(done.tokens))


def _judged(arm: Arm, question: Question, given: _Given, base: Mapping[str, str]) -> ArmRow:
    gold = base[question.text] if question.kind == "general" else question.gold
    return ArmRow(
        arm=arm,
        kind=question.kind,
        question=question.text,
        gold=gold,
        answer=given.text,
        correct=is_right(question, given.text, abstained=given.abstained, base_answer=gold),
        abstained=given.abstained,
        route=given.route,
        reason=given.reason,
        adapter=given.adapter,
        fact_id=question.fact_id,
        prompt_tokens=given.prompt_tokens,
        answer_tokens=given.answer_tokens,
        calls=given.calls,
        seconds=round(given.seconds, 4),
    )


def is_right(question: Question, answer: str, *, abstained: bool, base_answer: str) -> bool:
    """Whether an answer is right; see ``evaluate_arms``."""
    if question.kind == "unknown":
        return abstained or is_abstention(answer)
    if abstained:
        return False
    if question.kind == "general":
        return answer == base_answer
    return any(is_correct(answer, gold) for gold in (question.gold, *question.aliases))


def _notes(limits: ArmsLimits, arms: Sequence[Arm], everything: FullContext | None) -> list[str]:
    sampled = [
        f"{arm} was asked the first {most} questions of each kind only"
        for arm, most in (limits.sample or {}).items()
        if arm in arms
    ]
    return [*sampled, *([everything.note] if everything and everything.note else [])]


async def _stamp(namespace: str, questions: Sequence[Question], experiment: _Experiment, seed: int) -> dict[str, Any]:
    store, limits = experiment.recall.store, experiment.limits
    embedder = await store.embedder(namespace)
    manifest = await experiment.live.current(namespace)
    stored = [one.content_hash async for one in store.scan(namespace)]
    return {
        "base_model": experiment.backend.base_model,
        "embedder": embedder.model_dump(mode="json") if embedder else None,
        "adapter": manifest.name if manifest else None,
        "dataset_sha256": manifest.dataset_sha256 if manifest else None,
        "episodes": len(stored),
        "data_sha256": hash_of(sorted(stored)),
        "questions_sha256": hash_of(question.model_dump_json() for question in questions),
        "prompts_sha256": prompts_hash(),
        "code_sha256": code_hash(),
        "k": limits.k,
        "token_budget": limits.token_budget,
        "max_new_tokens": limits.max_new_tokens,
        "seed": seed,
        "versions": versions(),
        "machine": machine(),
    }
