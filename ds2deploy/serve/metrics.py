"""Prometheus metrics of the server."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.32, 0.5, 1.0, 2.0, 5.0, 10.0)
FILL = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one server, labelled by model.

    Attributes:
        registry: registry of these metrics and of the process's (memory, descriptors, CPU).
        tick: histogram of the duration of a tick (a batch of blocks or whole utterances), in
            seconds.
        lateness: histogram of the time from the completion of a live block to the end of its
            tick, in seconds.
        fill: number of streams or utterances in a tick.
        busy: seconds in which the scheduler computed.
        network: seconds of those that the network took.
        audio: seconds of audio that were recognised.
        streams: live streams.
        most_streams: maximum of live streams.
        waiting: seconds of audio of the stream or upload that waits longest behind the engine.
        refused: refused requests, by reason.
        requests: finished requests, by protocol and outcome.
        restarts: restarts of a failed engine.
        ready: 1 while the model is ready.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        model = ["model"]
        self.tick = Histogram(
            "ds2deploy_tick_seconds", "Seconds that a batch took", model, buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.lateness = Histogram(
            "ds2deploy_lateness_seconds", "Seconds from a complete block to the end of its batch",
            model, buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.fill = Histogram(
            "ds2deploy_batch_fill", "Streams or utterances in a batch", model, buckets=FILL,
            registry=registry,
        )  # fmt: skip
        self.busy = self._counter("busy_seconds", "Seconds in which batches were computed")
        self.network = self._counter("network_seconds", "Part of busy_seconds in the network")
        self.audio = self._counter("audio_seconds", "Seconds of audio that were recognised")
        self.streams = self._gauge("live_streams", "Live streams")
        self.most_streams = self._gauge("live_streams_limit", "Maximum number of live streams")
        self.waiting = self._gauge(
            "oldest_waiting_seconds", "Seconds of audio that wait in the longest backlog"
        )
        self.refused = self._counter("refused", "Refused requests", "reason")
        self.requests = self._counter("requests", "Finished requests", "protocol", "outcome")
        self.restarts = self._counter("engine_restarts", "Restarts of a failed engine")
        self.ready = self._gauge("ready", "1 while the model is ready")

    def text(self) -> bytes:
        """Format all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ds2deploy_{name}", text, ["model", *labels], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"ds2deploy_{name}", text, ["model"], registry=self.registry)
