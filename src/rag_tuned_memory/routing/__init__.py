"""Who answers a query: the tuned model, retrieval, both, or nobody; with the reason."""

from rag_tuned_memory.routing.answering import AnswerChunk, Answerer
from rag_tuned_memory.routing.base import Answer, Decision, Features, Route

__all__ = ["Answer", "AnswerChunk", "Answerer", "Decision", "Features", "Route"]
