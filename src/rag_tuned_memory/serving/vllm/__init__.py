"""A client of a vLLM server: adapters are loaded while it runs, and proven before they answer."""

from rag_tuned_memory.serving.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
