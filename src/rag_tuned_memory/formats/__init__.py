"""Importers and exporters: other programs' records of what an agent did, as trajectories and back."""

from rag_tuned_memory.formats.base import MAX_STEP_BYTES, ErrorPolicy, Importer, OnError, OnSkip, check_trajectory
from rag_tuned_memory.formats.detect import IMPORTERS, detect_format
from rag_tuned_memory.formats.jsonl import dump_jsonl, read_jsonl, write_jsonl
from rag_tuned_memory.formats.locomo import LocomoQuestion, read_locomo, read_locomo_questions
from rag_tuned_memory.formats.openai_chat import read_openai_chat

__all__ = [
    "IMPORTERS",
    "MAX_STEP_BYTES",
    "ErrorPolicy",
    "Importer",
    "LocomoQuestion",
    "OnError",
    "OnSkip",
    "check_trajectory",
    "detect_format",
    "dump_jsonl",
    "read_jsonl",
    "read_locomo",
    "read_locomo_questions",
    "read_openai_chat",
    "write_jsonl",
]
