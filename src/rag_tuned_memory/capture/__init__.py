"""Episodes recorded while they happen: what an agent framework's integration is built on."""

from rag_tuned_memory.capture.episode import OpenEpisode
from rag_tuned_memory.capture.recorder import EpisodeRecorder

__all__ = ["EpisodeRecorder", "OpenEpisode"]
