"""``RagTunedDecisionModel``: the memory's routing as a LangChain decision model, for ``ModelRouterMiddleware``.

Needs langchain-core 1.8 or newer, which is where decision models are.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from pydantic import ConfigDict, Field

from langchain_rag_tuned_memory._namespaces import asked_namespace, memory_of
from langchain_rag_tuned_memory._route_labels import question_in, takers
from langchain_rag_tuned_memory._telling import PROVIDER
from rag_tuned_memory.errors import InvalidInput, MissingExtra, RagTunedMemoryError
from rag_tuned_memory.memory import Memories, Memory
from rag_tuned_memory.routing.base import Route, Routing
from rag_tuned_memory.store.base import Filter

try:
    from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse
except ImportError as error:
    raise MissingExtra(
        "RagTunedDecisionModel needs langchain-core 1.8 or newer", remedy="pip install -U langchain langchain-core"
    ) from error

_log = logging.getLogger(__name__)


class RagTunedDecisionModel(BaseDecisionModel):
    """Chooses by where the memory would answer a question from.

    A choice's label takes the routes that its criteria name, ``{"routes": ["tuned", "both"]}``, or the route whose name
    it is (``"tuned"``, ``"retrieval"``, ``"both"``, ``"none"``). One label without routes takes all others.

        ModelRouterMiddleware(
            classifier=RagTunedDecisionModel(memory=memory),
            instructions="Who should answer?",
            choices={
                "memory": ModelChoice(model=ChatRagTuned(memory=memory), criteria={"routes": ["tuned"]}),
                "general": ModelChoice(model="openai:gpt-5", criteria="Everything else."),
            },
        )

    The question is the last human message. Routing goes by rules, so the label chosen has probability 1; where it
    could not be decided (the store is down) and ``on_error`` is "log", the label that takes "none" is chosen with
    confidence 0, so that the agent goes on without memory.

    Raises when called:
        InvalidNamespace: of many memories, none was named (``namespace``, or the surrounding run's config).
        InvalidInput: a question that is no choice, labels that leave a route to nobody or to several, or a state
            without a question.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str = "routing"
    memory: Memory | Memories = Field(exclude=True, repr=False)
    namespace: str | None = None
    k: int = Field(default=4, ge=1)
    token_budget: int = Field(default=320, ge=0)
    where: Filter | None = None
    on_error: Literal["log", "raise"] = "log"

    @property
    def _provider(self) -> str:
        return PROVIDER

    def _classify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        memory, query, labels = self._read(state, questions)
        routing = None
        try:
            routing = memory.decide(query, **self._limits)
        except RagTunedMemoryError as error:
            self._note(error)
        return self._response(labels, routing)

    async def _aclassify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        memory, query, labels = self._read(state, questions)
        routing = None
        try:
            routing = await memory.adecide(query, **self._limits)
        except RagTunedMemoryError as error:
            self._note(error)
        return self._response(labels, routing)

    @property
    def _limits(self) -> dict[str, Any]:
        return {"k": self.k, "token_budget": self.token_budget, "where": self.where}

    def _read(self, state: Any, questions: dict[str, Any]) -> tuple[Memory, str, dict[str, dict[Route, str]]]:
        memory = memory_of(self.memory, asked_namespace(self.namespace, None))
        labels = {name: _takers(question, f"questions.{name}") for name, question in questions.items()}
        return memory, question_in(state), labels

    def _note(self, error: RagTunedMemoryError) -> None:
        """Goes on without memory, unless that was not wanted or it is the caller's own mistake."""
        if self.on_error == "raise" or isinstance(error, InvalidInput):
            raise error
        _log.warning("the memory could not decide, the agent goes on without it: %s", error)

    def _response(self, labels: dict[str, dict[Route, str]], routing: Routing | None) -> ClassifierResponse:
        route = routing.decision.route if routing else Route.NONE
        answers = {}
        for name, takes in labels.items():
            chosen = takes[route]
            answers[name] = ChoiceAnswer(
                type="choice",
                choice=chosen,
                probabilities={label: float(label == chosen) for label in takes.values()},
                confidence=1.0 if routing else 0.0,
            )
        return ClassifierResponse(model=self.model, answers=answers)


def _takers(question: Any, place: str) -> dict[Route, str]:
    if not isinstance(question, Choice):
        raise InvalidInput(
            f"the memory's routing answers no {type(question).__name__}",
            place=place,
            remedy="Ask for a Choice whose labels take routes.",
        )
    return takers(question.criteria, place)
