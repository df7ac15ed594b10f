"""Probing an adapter: what it recalls in words it never saw, what it declines, what it forgot, how it reads."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rag_tuned_memory.distil.acting import Demonstration
from rag_tuned_memory.distil.compose import Material, invented_episodes
from rag_tuned_memory.distil.dialogue import general_messages, memory_messages
from rag_tuned_memory.distil.evaluation import Evaluation, ProbeRow, QuestionKind
from rag_tuned_memory.distil.facts import Fact, is_correct, normalise
from rag_tuned_memory.distil.phrasing import abstention, is_abstention, questions
from rag_tuned_memory.distil.rehearsal import labels_of, renamed
from rag_tuned_memory.distil.replay import Replay
from rag_tuned_memory.distil.unknown import Strangers, unknown_facts
from rag_tuned_memory.serving import tools
from rag_tuned_memory.serving.base import Fingerprint, InferenceBackend, Message, Request
from rag_tuned_memory.serving.fingerprint import lead

ANSWER_TOKENS = 24
UNKNOWN_PROBES = 24
READING_PROBES = 24
ACTING_PROBES = 24
_CALL_TOKENS = 96
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Probe:
    """One question with what is right."""

    kind: QuestionKind
    question: str
    gold: str
    context: str = ""
    fact_id: str | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """As the memory is asked."""
        return memory_messages(self.question, self.context)


async def evaluate(
    backend: InferenceBackend,
    adapter: str,
    material: Material,
    held_out: Sequence[Replay],
    fingerprint: Fingerprint,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure an adapter that the backend holds. ``held_out`` are the base's answers to held-out general prompts.

    Besides the gate's metrics there are ``beside_context`` (recall of local facts beside what our own recall finds),
    ``acting_beside`` and ``acting_base`` (recorded calls made beside recalled runs, and by the base), ``reading`` and
    ``reading_base`` (invented episodes that only the context tells, read with the adapter on and off): routing takes
    from them who should act and who should read evidence.
    """
    known = probes(material.facts)
    strange = _unknown_probes(material, seed)
    reading = _reading_probes(material, seed)
    beside = _beside_probes(material, seed)
    acts, acts_beside = (_acts(material, seed, beside=beside) for beside in (False, True))
    total = (
        2 * len(acts)
        + len(acts_beside)
        + 2 * len(held_out)
        + len(known)
        + len(strange)
        + 2 * len(reading)
        + len(beside)
    )
    asked = _Prober(backend, total, on_progress)
    rows = await asked.ask(known, adapter)
    declined = await asked.ask(strange, adapter)
    read = await asked.ask(reading, adapter)
    read_base = await asked.ask(reading, None)
    beside_rows = await asked.ask(beside, adapter)
    general = await asked.general(held_out, adapter)
    metrics = {
        "local_recall": _share(row.correct for row in rows if row.kind == "local"),
        "global_recall": _share(row.correct for row in rows if row.kind == "global"),
        "abstention": _share(row.correct for row in declined),
        "general_agreement": _mean([overlap(row.answer, row.gold) for row in general]),
        "perplexity_ratio": await asked.perplexity_ratio(held_out, adapter),
        "unique_answers": _unique(rows),
        "canary_margin": fingerprint.margin,
        "canary_lead": lead(fingerprint),
        "beside_context": _share(row.correct for row in beside_rows),
        "reading": _share(row.correct for row in read),
        "reading_base": _share(row.correct for row in read_base),
    }
    if acts:
        metrics["acting"] = await asked.acting(acts, adapter)
        metrics["acting_base"] = await asked.acting(acts, None)
    if acts_beside:
        metrics["acting_beside"] = await asked.acting(acts_beside, adapter)
    return Evaluation(metrics=metrics, rows=(*rows, *declined, *general))


def probes(facts: Sequence[Fact]) -> list[Probe]:
    """Each fact in one phrasing that was held out; a fact without one is not probed."""
    asked = [(fact, questions(fact, "held_out")) for fact in facts]
    return [
        Probe(fact.kind, words[int(fact.id, 16) % len(words)], fact.answer, fact_id=fact.id)
        for fact, words in asked
        if words
    ]


def overlap(answer: str, gold: str) -> float:
    """F1 of the words of two texts, as in SQuAD's evaluation."""
    one, other = Counter(normalise(answer).split()), Counter(normalise(gold).split())
    common = (one & other).total()
    return 2 * common / (one.total() + other.total()) if common else 0.0


class _Prober:
    """Asks a backend in batches and tells how far it is."""

    def __init__(self, backend: InferenceBackend, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self.backend, self.total, self.done = backend, total, 0
        self.on_progress = on_progress

    async def ask(self, asked: Sequence[Probe], adapter: str | None) -> list[ProbeRow]:
        """Rows in the order of the probes. A question about a stranger is right when it is declined."""
        answers = await self._generate([Request(p.messages, adapter, ANSWER_TOKENS) for p in asked])
        return [
            ProbeRow(
                kind=probe.kind,
                question=probe.question,
                gold=probe.gold,
                answer=answer,
                correct=is_abstention(answer) if probe.kind == "unknown" else is_correct(answer, probe.gold),
                fact_id=probe.fact_id,
            )
            for probe, answer in zip(asked, answers, strict=True)
        ]

    async def general(self, held_out: Sequence[Replay], adapter: str) -> list[ProbeRow]:
        """General prompts with the adapter on, against the base's answers; right is what overlaps by half."""
        answers = await self._generate([Request(general_messages(r.question), adapter, 56) for r in held_out])
        return [
            ProbeRow(kind="general", question=r.question, gold=r.answer, answer=a, correct=overlap(a, r.answer) >= 0.5)
            for r, a in zip(held_out, answers, strict=True)
        ]

    async def acting(self, acts: Sequence[Demonstration], adapter: str | None) -> float:
        """Share of the turns in which the model calls what the agent called, with the same arguments."""
        texts = await self._generate([Request(act.prompt, adapter, _CALL_TOKENS) for act in acts])
        return _share(tools.read(text).calls == act.calls for text, act in zip(texts, acts, strict=True))

    async def perplexity_ratio(self, held_out: Sequence[Replay], adapter: str) -> float:
        """exp of the mean loss of the base's own answers: adapter / base."""
        tuned: list[float] = []
        base: list[float] = []
        for replay in held_out:
            messages = general_messages(replay.question)
            tuned += (await self.backend.score(Request(messages, adapter), [replay.answer]))[0]
            base += (await self.backend.score(Request(messages), [replay.answer]))[0]
            self._step(1)
        return math.exp(min(50.0, _mean(base) - _mean(tuned))) if tuned else math.nan

    async def _generate(self, requests: Sequence[Request]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(requests), _BATCH):
            batch = requests[start : start + _BATCH]
            texts += [generation.text.strip() for generation in await self.backend.generate(batch)]
            self._step(len(batch))
        return texts

    def _step(self, count: int) -> None:
        self.done += count
        if self.on_progress:
            self.on_progress(self.done, self.total)


def _acts(material: Material, seed: int, *, beside: bool) -> list[Demonstration]:
    """Turns in which the agent called, in runs that are told of entities which training did not name."""
    random_ = random.Random(f"acts {seed}")
    strangers = Strangers(material.episodes, seed=seed + 3_000_003, known=material.known)
    labels = labels_of(material.episodes)
    chosen = [renamed(run, labels.get(run.trajectory_id), strangers) for run in material.runs if run.beside is beside]
    every = [turn for run in chosen for turn in run.turns if turn.calls]
    return random_.sample(every, min(ACTING_PROBES, len(every)))


def _unknown_probes(material: Material, seed: int) -> list[Probe]:
    strangers = Strangers(material.episodes, seed=seed + 1_000_003, known=material.known)
    facts = unknown_facts(material.facts, strangers, UNKNOWN_PROBES, seed=seed + 1_000_003)
    return [Probe("unknown", questions(f, "held_out")[0], abstention(f.slots["label"])) for f in facts]


def _reading_probes(material: Material, seed: int) -> list[Probe]:
    random_ = random.Random(f"reading probes {seed}")
    strangers = Strangers(material.episodes, seed=seed + 2_000_003, known=material.known)
    invented = invented_episodes(material, strangers, random_)
    random_.shuffle(invented)
    return [
        Probe("fresh", questions(fact, "held_out")[0], fact.answer, context)
        for fact, context in invented[:READING_PROBES]
    ]


def _beside_probes(material: Material, seed: int) -> list[Probe]:
    random_ = random.Random(f"beside probes {seed}")
    local = [fact for fact in material.facts if fact.kind == "local" and material.contexts.get(fact.id)]
    chosen: Sequence[Fact] = random_.sample(local, min(READING_PROBES, len(local)))
    return [
        Probe(fact.kind, questions(fact, "held_out")[0], fact.answer, material.contexts[fact.id])
        for fact in chosen
        if questions(fact, "held_out")
    ]


def _unique(rows: Sequence[ProbeRow]) -> float:
    golds = {normalise(row.gold) for row in rows}
    return len({normalise(row.answer) for row in rows}) / len(golds) if golds else math.nan


def _share(values: Iterable[bool]) -> float:
    return _mean([float(value) for value in values])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
