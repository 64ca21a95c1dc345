"""Metrics in Prometheus's format."""

from __future__ import annotations

import functools
import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from plamo2_jax.engine.scheduler import Delta
from plamo2_jax.serve.engine_thread import Answer, EngineThread
from plamo2_jax.serve.served_model import ServedModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters and histograms of one server, in a registry of their own. Call its methods in the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"plamo2_{name}", what, labels, registry=self.registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"plamo2_{name}", what, ["model"], buckets=buckets, registry=self.registry)

        self._finished = counter("samples", "Finished sequences by finish reason.", "model", "reason")
        self._refused = counter("refused_requests", "Requests that were answered with an error.", "status")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens.", "model")
        self._cached_tokens = counter("cached_prompt_tokens", "Prompt tokens found in the prefix cache.", "model")
        generated = counter("generated_tokens", "Generated tokens.", "model")
        # Looking up a label at every token takes longer than counting.
        self._generated_tokens = functools.cache(generated.labels)
        self._queue = histogram("queue_seconds", "Time in the queue, until prefill begins.", _SECONDS)
        self._first = histogram("time_to_first_token_seconds", "Time to first token.", _SECONDS)
        self._between = histogram("inter_token_seconds", "Time per output token after the first.", _SHORT_SECONDS)
        self._whole = histogram("request_seconds", "End-to-end time of a sequence.", _SECONDS)

    def watch(self, engine: EngineThread) -> None:
        """Add the state of an engine, read when the metrics are asked for."""
        self.registry.register(_EngineState(engine))

    def refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self._refused.labels(str(status)).inc()

    def delta(self, model: ServedModel, answer: Answer, index: int, delta: Delta) -> None:
        """Count the tokens that a round has added to a job."""
        job, name = delta.job, model.name
        self._generated_tokens(name).inc(len(delta.token_ids))
        if delta.finish_reason is None and delta.error is None:
            return
        reason = "error" if delta.error is not None else delta.finish_reason
        if reason == "cancelled" and answer.cancelled:
            reason = answer.cancelled
        self._finished.labels(name, reason).inc()
        # All samples of a prompt share its tokens.
        if job.request.sample == 0:
            self._prompt_tokens.labels(name).inc(len(job.request.prompt))
            self._cached_tokens.labels(name).inc(job.cached_tokens)
        now = time.monotonic()
        self._whole.labels(name).observe(now - job.submitted)
        if job.started is not None:
            self._queue.labels(name).observe(job.started - job.submitted)
        if job.first_token is not None:
            self._first.labels(name).observe(job.first_token - job.submitted)
            if (tokens := len(job.row.token_ids)) > 1:
                self._between.labels(name).observe((now - job.first_token) / (tokens - 1))

    def text(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self.registry)


class _EngineState(Collector):
    """Gauges that are read from the engine when the metrics are asked for."""

    def __init__(self, engine: EngineThread):
        self._engine = engine

    def collect(self):
        """Yield the metrics."""
        engine = self._engine

        def gauge(name: str, what: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"plamo2_{name}", what, labels=["model"])

        running, waiting = (
            gauge("running", "Sequences that are running."),
            gauge("waiting", "Sequences that are waiting for a slot."),
        )
        slots = gauge("slots", "Maximum number of running sequences.")
        drafted = CounterMetricFamily("plamo2_draft_tokens", "Draft tokens.", labels=["model"])
        kept = CounterMetricFamily("plamo2_kept_draft_tokens", "Accepted draft tokens.", labels=["model"])
        for name, model in engine.models.items():
            drafted.add_metric([name], model.scheduler.drafted)
            kept.add_metric([name], model.scheduler.kept)
            running.add_metric([name], model.scheduler.running)
            waiting.add_metric([name], model.scheduler.waiting)
            slots.add_metric([name], model.scheduler.engine.slots)
        yield from (running, waiting, slots, drafted, kept)
        caches = {id(cache): cache for m in engine.models.values() if (cache := m.scheduler.engine.prefix_cache)}
        snapshots, size = 0, 0
        evictions = 0
        for cache in caches.values():
            snapshots, size, evictions = snapshots + len(cache), size + cache.bytes, evictions + cache.evictions
        yield GaugeMetricFamily("plamo2_prefix_cache_snapshots", "Snapshots in the prefix cache.", snapshots)
        yield GaugeMetricFamily("plamo2_prefix_cache_bytes", "Bytes of the prefix cache.", size)
        yield CounterMetricFamily(
            "plamo2_prefix_cache_evictions", "Snapshots evicted from the prefix cache.", evictions
        )
        yield CounterMetricFamily(
            "plamo2_compilations_after_warm_up",
            "Compilations after the warm-up. Each delayed requests and is a bug.",
            engine.compilations,
        )
