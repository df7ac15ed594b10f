"""The memory of one namespace: ``AsyncMemory``, and ``Memory``, its blocking face."""

from rag_tuned_memory.memory.asynchronous import AsyncMemory, AsyncWorkerHandle
from rag_tuned_memory.memory.blocking import Memory, WorkerHandle
from rag_tuned_memory.memory.many import Memories
from rag_tuned_memory.memory.receipts import ForgetReceipt, MemoryStats, RecordReceipt

__all__ = [
    "AsyncMemory",
    "AsyncWorkerHandle",
    "ForgetReceipt",
    "Memories",
    "Memory",
    "MemoryStats",
    "RecordReceipt",
    "WorkerHandle",
]
