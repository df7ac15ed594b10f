"""The client of a text-generation-inference (TGI) server."""

from rag_tuned_memory.models.extras import require

require("tenacity", extra="tgi")

from rag_tuned_memory.serving.tgi.backend import TgiBackend  # noqa: E402
from rag_tuned_memory.serving.tgi.grammar import Grammar, JsonGrammar, RegexGrammar  # noqa: E402
from rag_tuned_memory.serving.tgi.limits import TimeLimits  # noqa: E402
from rag_tuned_memory.serving.tgi.server import ServerInfo  # noqa: E402

__all__ = ["Grammar", "JsonGrammar", "RegexGrammar", "ServerInfo", "TgiBackend", "TimeLimits"]
