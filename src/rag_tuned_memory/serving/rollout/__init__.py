"""Rolling adapters out to servers that load them only when they start: another one is started, and takes over."""

from rag_tuned_memory.serving.rollout.blue_green import BlueGreen
from rag_tuned_memory.serving.rollout.launch import CommandLauncher, Launcher, ProcessLauncher, Server

__all__ = ["BlueGreen", "CommandLauncher", "Launcher", "ProcessLauncher", "Server"]
