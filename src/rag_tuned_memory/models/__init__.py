"""Models' weights: which are known, how they come onto this machine, and where they lie.

Other modules call ``locate`` to find weights and ``read_info`` for their revision; ``rtm pull`` calls ``pull``.
"""

from rag_tuned_memory.models.catalog import CATALOG, KnownModel
from rag_tuned_memory.models.dtype import fastest_dtype
from rag_tuned_memory.models.extras import import_extra, require
from rag_tuned_memory.models.folder import ModelInfo, read_info
from rag_tuned_memory.models.pulling import locate, pull
from rag_tuned_memory.models.quiet import quiet_transformers
from rag_tuned_memory.models.sources import OnProgress
from rag_tuned_memory.models.threads import in_own_thread

__all__ = [
    "CATALOG",
    "KnownModel",
    "ModelInfo",
    "OnProgress",
    "fastest_dtype",
    "import_extra",
    "in_own_thread",
    "locate",
    "pull",
    "quiet_transformers",
    "read_info",
    "require",
]
