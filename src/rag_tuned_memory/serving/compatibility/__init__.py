"""Whether a server can serve an adapter as it was trained, asked before training and before export.

What a server cannot do it often does not refuse: TGI leaves out what it does not know and answers from what is left, or
from the base model alone. So everything that changes what an adapter computes must be known to be served.
"""

from rag_tuned_memory.serving.compatibility.check import problems, sentence
from rag_tuned_memory.serving.compatibility.facts import AdapterFacts, BaseFacts
from rag_tuned_memory.serving.compatibility.names import path_problems
from rag_tuned_memory.serving.compatibility.problem import SERVERS, Problem, Server
from rag_tuned_memory.serving.compatibility.vllm import MAX_LORA_RANKS, least_max_lora_rank

__all__ = [
    "MAX_LORA_RANKS",
    "SERVERS",
    "AdapterFacts",
    "BaseFacts",
    "Problem",
    "Server",
    "least_max_lora_rank",
    "path_problems",
    "problems",
    "sentence",
]
