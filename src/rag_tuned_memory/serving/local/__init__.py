"""The local backend: transformers and PEFT in this process.

One worker thread owns the model. Requests from any number of tasks are collected into batches, in which base model
and adapters mix. Importing this package needs no torch; the model is loaded with the first request.
"""

from rag_tuned_memory.serving.local.backend import LocalBackend

__all__ = ["LocalBackend"]
