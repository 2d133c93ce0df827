"""Counters of a service, in the text format of Prometheus."""

from llamarl.core.errors import MissingDependencyError

try:
    import prometheus_client as prometheus
except ImportError:
    raise MissingDependencyError.for_extra("prometheus-client", "serve") from None

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = prometheus.CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The numbers of one service and of its process (`process_resident_memory_bytes` among them)."""

    def __init__(self) -> None:
        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
        self.requests = self.counter("http_requests", "Finished requests.", "route", "status")
        self.seconds = prometheus.Histogram(
            "llamarl_http_request_seconds", "Seconds from a request to its answer.", ["route"], registry=self._registry
        )
        self.in_flight = self.gauge("http_requests_in_flight", "Requests that have no answer yet.")
        self.batch_items = prometheus.Histogram(
            "llamarl_batch_items", "Items of a batch.", buckets=BATCH_BUCKETS, registry=self._registry
        )
        self.batch_seconds = self.counter("batch_seconds", "Seconds of computing batches.")
        self.waiting = self.gauge("queue_items", "Items that wait for a batch.")

    def counter(self, name: str, meaning: str, *labels: str) -> prometheus.Counter:
        """A number that only grows, `llamarl_NAME_total`."""
        return prometheus.Counter(f"llamarl_{name}", meaning, labels, registry=self._registry)

    def gauge(self, name: str, meaning: str) -> prometheus.Gauge:
        """A number that goes up and down, `llamarl_NAME`."""
        return prometheus.Gauge(f"llamarl_{name}", meaning, registry=self._registry)

    def render(self) -> bytes:
        """All numbers, as `GET /metrics` gives them."""
        return bytes(prometheus.generate_latest(self._registry))
