"""What the package exports, and what importing it does not need."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import langchain_rag_tuned_memory as package

PUBLIC = [
    "ChatRagTuned",
    "RagTunedChatMessageHistory",
    "RagTunedDecisionModel",
    "RagTunedDemonstrations",
    "RagTunedMemory",
    "RagTunedMemoryMiddleware",
    "RagTunedRetriever",
    "RagTunedStore",
    "TrajectoryRecorder",
    "__version__",
    "format_documents",
    "memory_tools",
]
ONLY_NEWER = {"RagTunedDecisionModel"}
"""Needs a langchain-core that has decision models; see test_decisions."""
HEAVY = ("torch", "transformers", "weaviate", "langgraph", "langchain", "langchain_classic", "openai", "llguidance")


def test_the_public_names() -> None:
    assert sorted(package.__all__) == PUBLIC
    assert set(package.__all__) <= set(dir(package))
    assert package.__version__ == version("langchain-rag-tuned-memory")


def test_each_can_be_imported() -> None:
    for name in set(PUBLIC) - ONLY_NEWER:
        assert getattr(package, name) is not None


def loaded_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after ``code``."""
    look = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    assert loaded_after("import langchain_rag_tuned_memory") == set()
    light = "import langchain_rag_tuned_memory, sys; assert 'langchain_core' not in sys.modules"
    assert loaded_after(light) == set()


def test_retriever_and_chat_model_need_langchain_core_only() -> None:
    assert loaded_after("from langchain_rag_tuned_memory import ChatRagTuned, RagTunedRetriever") == set()
