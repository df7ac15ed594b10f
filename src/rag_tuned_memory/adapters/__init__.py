"""Adapters: the gate, the report, lineage, states, and a registry of immutable versions."""

from rag_tuned_memory.adapters.gate import Decision, Verdict, decide
from rag_tuned_memory.adapters.manifest import Draft, Learned, Manifest, TrainStats, Watermark
from rag_tuned_memory.adapters.registry import AdapterRegistry
from rag_tuned_memory.adapters.report import write_report
from rag_tuned_memory.adapters.states import State, Transition

__all__ = [
    "AdapterRegistry",
    "Decision",
    "Draft",
    "Learned",
    "Manifest",
    "State",
    "TrainStats",
    "Transition",
    "Verdict",
    "Watermark",
    "decide",
    "write_report",
]
