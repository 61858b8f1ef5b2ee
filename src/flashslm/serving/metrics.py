"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SECONDS_PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class ServerMetrics:
    """Counters of one server in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.ended = Counter(
            "flashslm_requests_ended", "Accepted requests by how they ended.", ["outcome"], registry=registry
        )
        self.refused = Counter(
            "flashslm_requests_refused",
            "Requests answered with an error, by HTTP status.",
            ["status"],
            registry=registry,
        )
        self.prompt_tokens = Counter("flashslm_prompt_tokens", "Tokens of prefilled prompts.", registry=registry)
        self.new_tokens = Counter("flashslm_generated_tokens", "Tokens generated.", registry=registry)
        self.running = Gauge("flashslm_requests_running", "Requests that occupy a row of the batch.", registry=registry)
        self.waiting = Gauge("flashslm_requests_waiting", "Accepted requests without a row.", registry=registry)
        self.first_token_s = Histogram(
            "flashslm_time_to_first_token_seconds",
            "From a request's acceptance to its first token, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.token_s = Histogram(
            "flashslm_time_per_output_token_seconds",
            "Between a request's tokens.",
            buckets=_SECONDS_PER_TOKEN,
            registry=registry,
        )

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
