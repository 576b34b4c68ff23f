"""Metrics: what one replica tells Prometheus.

Base units, one prefix, a registry of its own. The `task` label is only ever the address of a task that this server
serves, for at most `max_tasks` of them; the series of a task that leaves go with it. Histograms carry no task.
It refuses to know HTTP beyond the number of a status code.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from prefixbank.serving.engine import BatchReport
    from prefixbank.serving.scheduler import QueueState
    from prefixbank.serving.tier import TierState

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
OTHER = "other"
"""Label of a task beyond the cap, and of what is no task."""


class Sources(NamedTuple):
    """Where gauges look when Prometheus asks."""

    queue: Callable[[], QueueState]
    tiers: Mapping[str, Callable[[], TierState]]
    """By tier: "device" and "host"."""


class Metrics:
    """The instruments of one replica."""

    def __init__(self, sources: Sources, build: Mapping[str, str], max_tasks: int = 1000) -> None:
        self._registry = CollectorRegistry()
        self._max_tasks = max_tasks
        self._lock = threading.Lock()
        self._pipelines: dict[str, str] = {}  # of the tasks with a label
        self._seen: set[tuple[str, str, str]] = set()  # label values in use, to be removed with the task
        self._requests = self._counter("requests", "Requests answered", "task", "pipeline", "code")
        self._rejected = self._counter("rejected", "Requests refused for want of capacity", "reason")
        self._failed_rows = self._counter("failed_rows", "Rows that got an error instead of logits")
        self._loads = self._counter("task_load", "Prompts loaded from the store", "result")
        self._seconds = self._histogram("request_duration_seconds", "Time by stage", SECONDS, "pipeline", "stage")
        self._load_seconds = self._histogram("task_load_duration_seconds", "Time to load a prompt", SECONDS)
        self._rows = self._histogram("batch_size", "Rows of a batch", ROWS)
        self._tokens = self._histogram("batch_tokens", "Tokens of a batch", TOKENS)
        self._tasks = self._histogram("batch_tasks", "Distinct prompts of a batch", ROWS)
        names = tuple(sorted(build))
        info = Gauge("build_info", "What runs here", names, namespace="prefixbank", registry=self._registry)
        info.labels(*(build[name] for name in names)).set(1)
        self._registry.register(_Watcher(sources))

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def register_task(self, task: str, pipeline: str) -> None:
        """Give a served task its label, if the cap leaves room."""
        if task not in self._pipelines and len(self._pipelines) < self._max_tasks:
            with self._lock:
                self._pipelines[task] = pipeline

    def retain_tasks(self, tasks: Iterable[str]) -> None:
        """Remove the label and the series of every task that is not among `tasks`."""
        with self._lock:
            gone = self._pipelines.keys() - set(tasks)
            for task in gone:
                del self._pipelines[task]
            for labels in [labels for labels in self._seen if labels[0] in gone]:
                self._seen.discard(labels)
                self._requests.remove(*labels)

    def count_request(self, task: object | None, code: int, seconds: float) -> None:
        """Count one answered request; `task` is its address, as far as it named one."""
        name = str(task)
        with self._lock:
            pipeline = self._pipelines.get(name)
            labels = (OTHER if pipeline is None else name, pipeline or OTHER, str(code))
            self._seen.add(labels)
            self._requests.labels(*labels).inc()
        self.observe_stage(pipeline or OTHER, "total", seconds)

    def count_rejection(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def count_load(self, result: str, seconds: float) -> None:
        self._loads.labels(result).inc()
        self._load_seconds.observe(seconds)

    def observe_stage(self, pipeline: str, stage: str, seconds: float) -> None:
        self._seconds.labels(pipeline, stage).observe(seconds)

    def observe_batch(self, report: BatchReport) -> None:
        self._rows.observe(len(report.pipelines))
        self._tokens.observe(report.num_tokens)
        self._tasks.observe(report.num_tasks)
        self._failed_rows.inc(report.num_failed)
        for pipeline, waited_s in zip(report.pipelines, report.waited_s, strict=True):
            self.observe_stage(pipeline, "queue", waited_s)
            self.observe_stage(pipeline, "forward", report.forward_s)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace="prefixbank", registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, namespace="prefixbank", registry=self._registry, buckets=buckets)


class _Watcher(Collector):
    """Reads the queue and the memory tiers at the moment of the scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        queue = self._sources.queue()
        yield GaugeMetricFamily("prefixbank_queue_depth", "Rows that wait", value=queue.depth)
        yield GaugeMetricFamily("prefixbank_queue_tokens", "Tokens that wait", value=queue.tokens)
        yield GaugeMetricFamily(
            "prefixbank_queue_oldest_age_seconds", "Age of the row that waits longest", value=queue.oldest_age_s
        )
        tiers = {name: state() for name, state in self._sources.tiers.items()}
        gauges = {"tasks_resident": "Prompts held", "task_resident_bytes": "Bytes of the prompts held"}
        resident, num_bytes = (GaugeMetricFamily(f"prefixbank_{n}", t, labels=["tier"]) for n, t in gauges.items())
        hits = CounterMetricFamily("prefixbank_cache_hits", "Prompts found where they were wanted", labels=["tier"])
        misses = CounterMetricFamily("prefixbank_cache_misses", "Prompts that had to be fetched", labels=["tier"])
        evicted = CounterMetricFamily("prefixbank_task_evictions", "Prompts let go", labels=["tier", "reason"])
        for tier, state in tiers.items():
            resident.add_metric([tier], state.num_prompts)
            num_bytes.add_metric([tier], state.num_bytes)
            hits.add_metric([tier], state.hits)
            misses.add_metric([tier], state.misses)
            for reason, count in sorted(state.evictions.items()):
                evicted.add_metric([tier, reason], count)
        yield from (resident, num_bytes, hits, misses, evicted)
