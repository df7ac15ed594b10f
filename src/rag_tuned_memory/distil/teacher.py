"""Further questions about an episode, written by a teacher model and kept only where the episode bears them out.

Any OpenAI-compatible endpoint can teach, or the base model itself. Neither the episode nor the teacher is trusted: the
episode stands fenced in the prompt, and a question counts only when every word of its answer occurs in one step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import anyio

from rag_tuned_memory.distil.facts import Fact, normalise
from rag_tuned_memory.distil.views import view
from rag_tuned_memory.errors import InvalidInput
from rag_tuned_memory.recall.budget import estimate_tokens
from rag_tuned_memory.recall.passages import day, outcome_text, speaker, step_text
from rag_tuned_memory.recall.prompt import CLOSING, NOTE, OPENING, neutralised
from rag_tuned_memory.serving.base import InferenceBackend, Message, Request
from rag_tuned_memory.serving.endpoint import Names
from rag_tuned_memory.serving.openai_compatible import OpenAICompatible
from rag_tuned_memory.settings import Settings
from rag_tuned_memory.store.base import StoredTrajectory
from rag_tuned_memory.trajectory import Trajectory, canonical_json

TOPIC = "teacher"
MAX_ANSWER_WORDS = 12
MAX_QUESTION_CHARACTERS = 300
NEAR_DUPLICATE = 0.9
"""Questions this alike (ratio of difflib, 1 is the same) are one question."""
TOKENS_PER_QUESTION = 96
EPISODE_TOKENS = 1_200
_MAX_REPLY_CHARACTERS = 50_000
_MAX_LINE_CHARACTERS = 2_000


class Teacher(Protocol):
    """A model that writes."""

    @property
    def identity(self) -> str:
        """Which model it is: replies of different identities are never mixed up in a cache."""
        ...

    async def write(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """The model's reply. Raises BackendError."""
        ...


_TEACHER = Names(
    place="teacher",
    url="RTM_TEACHER_URL",
    key="RTM_TEACHER_KEY",
    model="RTM_TEACHER_MODEL",
    shorter="Lower the token budget of teacher_facts.",
    reply="chat completion",
)


class OpenAITeacher:
    """A model behind any endpoint that speaks OpenAI's chat completions.

    ``key`` is the only credential that is ever sent: without one none is, even where the environment holds a key for
    another endpoint. Time limits and retries (of connections, 408, 409, 429 and 5xx) are the client's.

    Raises:
        MissingExtra: the ``openai`` package is not installed.
    """

    def __init__(
        self, base_url: str, model: str, key: str | None = None, *, timeout: float = 120.0, max_retries: int = 2
    ) -> None:
        self._base_url, self._model = base_url, model
        self._backend = OpenAICompatible(base_url, model, key, timeout=timeout, max_retries=max_retries, names=_TEACHER)

    @property
    def identity(self) -> str:
        """Endpoint and model."""
        return f"{self._base_url} {self._model}"

    async def write(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Greedy where the endpoint honours ``temperature``. Raises what ``OpenAICompatible.generate`` raises."""
        [generation] = await self._backend.generate([Request(tuple(messages), max_new_tokens=max_tokens)])
        return generation.text

    async def close(self) -> None:
        """Close the connections."""
        await self._backend.close()


class BackendTeacher:
    """The model that a backend serves, without an adapter: the base model teaches its own adapter."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend

    @property
    def identity(self) -> str:
        """The base model's."""
        return self._backend.base_model

    async def write(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Greedy."""
        [generation] = await self._backend.generate([Request(tuple(messages), max_new_tokens=max_tokens)])
        return generation.text


class CachedTeacher:
    """Keeps a teacher's replies in ``folder``: an interrupted run asks and pays for nothing twice."""

    def __init__(self, teacher: Teacher, folder: Path) -> None:
        self._teacher, self._folder = teacher, folder

    @property
    def identity(self) -> str:
        """The teacher's."""
        return self._teacher.identity

    async def write(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """The kept reply to exactly this, else the teacher's."""
        asked = canonical_json([self.identity, [[m.role, m.content] for m in messages], max_tokens])
        path = anyio.Path(self._folder) / f"teacher-{hashlib.sha256(asked).hexdigest()[:24]}.txt"
        if await path.exists():
            return await path.read_text("utf-8")
        reply = await self._teacher.write(messages, max_tokens=max_tokens)
        await path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        await temporary.write_text(reply, "utf-8", errors="replace", newline="")
        await temporary.replace(path)
        return reply


def open_teacher(settings: Settings) -> OpenAITeacher | None:
    """The teacher that the settings name; None where they name none.

    Raises:
        InvalidInput: an address without a model's name.
        MissingExtra: the ``openai`` package is not installed.
    """
    if settings.teacher_url is None:
        return None
    if not settings.teacher_model:
        raise InvalidInput("RTM_TEACHER_URL is set, but no model", remedy="Set RTM_TEACHER_MODEL to its name.")
    return OpenAITeacher(settings.teacher_url, settings.teacher_model, settings.teacher_key)


async def teacher_facts(
    teacher: Teacher, stored: StoredTrajectory, *, count: int, token_budget: int = EPISODE_TOKENS
) -> list[Fact]:
    """Up to ``count`` facts of one episode in a teacher's words; fewer, or none, where its reply does not hold.

    At most ``token_budget`` tokens of the episode (by a cautious estimate) are shown: its beginning and its end where
    it is longer. Kept is what names the episode, has an answer of at most ``MAX_ANSWER_WORDS`` words that all occur in
    one step, and does not repeat another question. The paraphrase is for probing only.

    Raises:
        BackendError: of the teacher.
    """
    if count < 1:
        return []
    lines = _fitting(_episode_lines(stored.trajectory), token_budget)
    episode = "\n".join([OPENING, NOTE, *lines, CLOSING])
    user = _prompt("teacher_user.txt").replace("{count}", str(count)).replace("{episode}", episode)
    messages = (Message("system", _prompt("teacher_system.txt")), Message("user", user))
    reply = await teacher.write(messages, max_tokens=TOKENS_PER_QUESTION * count)
    marks = _marks(stored)
    grounds = [frozenset(normalise(line).split()) for line in lines]
    facts: list[Fact] = []
    for item in _objects(reply):
        fact = _fact(item, stored.trajectory.id, marks, grounds)
        if fact and not any(alike(fact.questions[0], kept.questions[0]) for kept in facts):
            facts.append(fact)
        if len(facts) == count:
            break
    return facts


def alike(one: str, other: str) -> bool:
    """Whether two questions are nearly the same text."""
    return SequenceMatcher(None, normalise(one), normalise(other), autojunk=False).ratio() >= NEAR_DUPLICATE


def _fact(
    item: dict[str, Any], trajectory_id: str, marks: frozenset[str], grounds: Sequence[frozenset[str]]
) -> Fact | None:
    question, paraphrase, answer = (_text(item.get(key)) for key in ("question", "paraphrase", "answer"))
    words = normalise(answer).split()
    if not 0 < len(words) <= MAX_ANSWER_WORDS or not any(ground.issuperset(words) for ground in grounds):
        return None
    if not _can_be_asked(question, marks):
        return None
    questions: tuple[str, ...] = (question,)
    if _can_be_asked(paraphrase, marks) and not alike(question, paraphrase):
        questions = (question, paraphrase)
    return Fact(
        kind="local", topic=TOPIC, slots={}, answer=answer, trajectory_ids=(trajectory_id,), questions=questions
    )


def _can_be_asked(question: str, marks: frozenset[str]) -> bool:
    said = f" {normalise(question)} "
    names_it = not marks or any(f" {mark} " in said for mark in marks)
    return bool(said.strip()) and len(question) <= MAX_QUESTION_CHARACTERS and names_it


def _text(value: Any) -> str:
    """A string or a number as one line; empty for anything else, and for what is not valid UTF-8."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    text = " ".join(str(value).split())
    return text if text.isprintable() else ""


def _marks(stored: StoredTrajectory) -> frozenset[str]:
    """What a question can know the episode by: identifiers, names, speakers, its date; normalised."""
    seen = view(stored)
    named = [*seen.identifiers, *seen.names, *seen.actors, *([day(seen.time)] if seen.time else [])]
    return frozenset(filter(None, map(normalise, named)))


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a reply, with keys in lower case: in lines, a list, code fences or between prose."""
    decoder = json.JSONDecoder()
    text = reply[:_MAX_REPLY_CHARACTERS]
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
            yield {str(key).lower(): child for key, child in value.items()}
        except (ValueError, RecursionError):
            end = position + 1
        position = text.find("{", end)


def _episode_lines(trajectory: Trajectory) -> Iterator[str]:
    """The episode as lines, one a step, defused; the first says date, goal and outcome."""
    date = day(trajectory.time) if trajectory.time else ""
    yield _line(" · ".join(filter(None, (date, trajectory.goal, outcome_text(trajectory.outcome)))) or "undated")
    for step in trajectory.steps:
        yield _line(f"{speaker(step.kind, step.actor, step.tool)}: {step_text(step)}")


def _line(text: str) -> str:
    return " ".join(neutralised(text[:_MAX_LINE_CHARACTERS]).split())


def _fitting(lines: Iterator[str], budget: int) -> list[str]:
    """``lines`` where they fit, else as many as fit from the beginning and from the end, alternately."""
    every = list(lines)
    costs = [cost + 1 for cost in estimate_tokens(every)]
    first, last, left = 0, len(every), budget
    while first < last:
        from_front = first <= len(every) - last
        position = first if from_front else last - 1
        if costs[position] > left:
            break
        left -= costs[position]
        first, last = (first + 1, last) if from_front else (first, last - 1)
    return [*every[:first], *(["…"] if first < last else []), *every[last:]]


@cache
def _prompt(name: str) -> str:
    return files("rag_tuned_memory.distil").joinpath(f"prompts/{name}").read_text("utf-8").strip()
