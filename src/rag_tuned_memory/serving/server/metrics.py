"""Counters for Prometheus, under the names that TGI gives them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """One server's counters. ``load`` gives how many requests wait and how many run."""

    def __init__(self, load: Callable[[], tuple[int, int]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self.requests = Counter("tgi_request_count", "Requests", registry=self._registry)
        self.successes = Counter("tgi_request_success", "Requests answered", registry=self._registry)
        self.failures = Counter("tgi_request_failure", "Requests not answered", ["err"], registry=self._registry)
        queue = Gauge("tgi_queue_size", "Requests that wait for a place in the batch", registry=self._registry)
        queue.set_function(lambda: load()[0])
        batch = Gauge("tgi_batch_current_size", "Requests in the batch", registry=self._registry)
        batch.set_function(lambda: load()[1])
        self.duration = self._histogram("tgi_request_duration", "Seconds of a request", SECONDS)
        self.validation = self._histogram("tgi_request_validation_duration", "Seconds until it is valid", SECONDS)
        self.inference = self._histogram("tgi_request_inference_duration", "Seconds of generation", SECONDS)
        self.token = self._histogram("tgi_request_mean_time_per_token_duration", "Seconds a token", SECONDS)
        self.input_length = self._histogram("tgi_request_input_length", "Tokens of the prompt", TOKENS)
        self.new_tokens = self._histogram("tgi_request_max_new_tokens", "Tokens asked for", TOKENS)
        self.generated = self._histogram("tgi_request_generated_tokens", "Tokens generated", TOKENS)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, meaning, buckets=buckets, registry=self._registry)

    def text(self) -> str:
        """The exposition. The library ends counters' names with ``_total``, TGI does not."""
        return generate_latest(self._registry).decode().replace("_total", "")
