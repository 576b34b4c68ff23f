"""Metrics: the names people alert on, labels only for tasks that are served, at most as many as the cap allows."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from prefixbank.model_store.address import Address
from prefixbank.serving.engine import BatchReport
from prefixbank.serving.metrics import Metrics, Sources
from prefixbank.serving.scheduler import QueueState
from prefixbank.serving.tier import TierState

TEXT = "text-classification"


def make_metrics(max_tasks: int = 1000) -> Metrics:
    tiers = {
        "device": lambda: TierState(3, 4096, 10, 2, Counter(room=5)),
        "host": lambda: TierState(7, 8192, 1, 1, Counter()),
    }
    return Metrics(Sources(lambda: QueueState(2, 60, 0.25), tiers), {"version": "1.2.3"}, max_tasks)


def samples(metrics: Metrics, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return {tuple(sorted(sample.labels.items())): sample.value for sample in found}


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


def test_a_request_is_counted_under_its_task_pipeline_and_code() -> None:
    metrics = make_metrics()
    metrics.register_task("acme/a", TEXT)
    for code in (200, 200, 413):
        metrics.count_request(Address("acme", "a"), code, 0.01)
    assert samples(metrics, "prefixbank_requests_total") == {
        labels(task="acme/a", pipeline=TEXT, code="200"): 2,
        labels(task="acme/a", pipeline=TEXT, code="413"): 1,
    }
    total = samples(metrics, "prefixbank_request_duration_seconds_count")
    assert total == {labels(pipeline=TEXT, stage="total"): 3}


def test_an_address_that_is_not_served_gets_no_label_of_its_own() -> None:
    metrics = make_metrics()
    for number in range(50):
        metrics.count_request(Address("mallory", f"scan{number}"), 404, 0.001)
    metrics.count_request(None, 405, 0.001)
    assert samples(metrics, "prefixbank_requests_total") == {
        labels(task="other", pipeline="other", code="404"): 50,
        labels(task="other", pipeline="other", code="405"): 1,
    }


def test_tasks_beyond_the_cap_share_one_label_until_room_is_made() -> None:
    metrics = make_metrics(max_tasks=2)
    for name in ("acme/a", "acme/b", "acme/c"):
        metrics.register_task(name, TEXT)
        metrics.count_request(name, 200, 0.01)
    assert {dict(key)["task"] for key in samples(metrics, "prefixbank_requests_total")} == {"acme/a", "acme/b", "other"}
    metrics.retain_tasks(["acme/b", "acme/c"])
    metrics.register_task("acme/c", TEXT)
    metrics.count_request("acme/c", 200, 0.01)
    assert {dict(key)["task"] for key in samples(metrics, "prefixbank_requests_total")} == {"acme/b", "acme/c", "other"}


def test_a_batch_is_measured_by_rows_tokens_tasks_and_stages() -> None:
    metrics = make_metrics()
    metrics.observe_batch(BatchReport(90, 2, (TEXT, TEXT, "token-classification"), (0.001, 0.002, 0.003), 0.02, 1))
    assert samples(metrics, "prefixbank_batch_size_sum") == {(): 3}
    assert samples(metrics, "prefixbank_batch_tokens_sum") == {(): 90}
    assert samples(metrics, "prefixbank_batch_tasks_sum") == {(): 2}
    assert samples(metrics, "prefixbank_failed_rows_total") == {(): 1}
    seconds = samples(metrics, "prefixbank_request_duration_seconds_sum")
    assert seconds[labels(pipeline=TEXT, stage="forward")] == pytest.approx(0.04)
    assert seconds[labels(pipeline=TEXT, stage="queue")] == pytest.approx(0.003)


def test_the_queue_and_the_tiers_are_read_at_the_scrape() -> None:
    metrics = make_metrics()
    assert samples(metrics, "prefixbank_queue_depth") == {(): 2}
    assert samples(metrics, "prefixbank_queue_tokens") == {(): 60}
    assert samples(metrics, "prefixbank_queue_oldest_age_seconds") == {(): 0.25}
    assert samples(metrics, "prefixbank_tasks_resident") == {labels(tier="device"): 3, labels(tier="host"): 7}
    assert samples(metrics, "prefixbank_task_resident_bytes")[labels(tier="device")] == 4096
    assert samples(metrics, "prefixbank_task_evictions_total") == {labels(tier="device", reason="room"): 5}
    assert samples(metrics, "prefixbank_cache_hits_total")[labels(tier="device")] == 10
    assert samples(metrics, "prefixbank_cache_misses_total")[labels(tier="host")] == 1


def test_loads_rejections_and_the_build_are_told() -> None:
    metrics = make_metrics()
    metrics.count_load("ok", 0.02)
    metrics.count_load("WrongShape", 0.01)
    metrics.count_rejection("Overloaded")
    assert samples(metrics, "prefixbank_task_load_total") == {labels(result="ok"): 1, labels(result="WrongShape"): 1}
    assert samples(metrics, "prefixbank_task_load_duration_seconds_count") == {(): 2}
    assert samples(metrics, "prefixbank_rejected_total") == {labels(reason="Overloaded"): 1}
    assert samples(metrics, "prefixbank_build_info") == {labels(version="1.2.3"): 1}


def test_every_name_has_the_prefix_and_no_colon() -> None:
    metrics = make_metrics()
    names = {family.name for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert all(name.startswith("prefixbank_") and ":" not in name for name in names)


def test_two_replicas_in_one_process_do_not_share_counters() -> None:
    one, other = make_metrics(), make_metrics()
    one.count_rejection("Overloaded")
    assert samples(other, "prefixbank_rejected_total") == {}
