"""Benchmark of reports: a few events go through the store, RabbitMQ and Treeherder."""

import pytest

from tests.benchmarks.support import labels, run_benchmark


@pytest.mark.long
def test_events_are_sent_into_the_store() -> None:
    title, line = run_benchmark("reports", "store", "--events", "40")
    assert title == "40 events into the store alone, SQLite:"
    assert "events a second" in line


@pytest.mark.long
def test_events_are_taken_from_rabbitmq_into_the_store(amqp_url: str) -> None:
    title, *lines = run_benchmark("reports", "intake", "--events", "40", "--amqp-url", amqp_url)
    assert title == "40 events from RabbitMQ into the store, SQLite:"
    assert labels(lines)[1:] == ["service", "listener"]


@pytest.mark.long
def test_events_become_jobs_in_treeherder(amqp_url: str) -> None:
    options = ("--events", "40", "--quiet", "2", "--amqp-url", amqp_url)
    title, *lines = run_benchmark("reports", "through", *options)
    assert title == "40 events from RabbitMQ to Treeherder, SQLite:"
    assert lines[1].startswith("  10 jobs were posted in ")
    assert lines[2] == "  10 of 10 jobs link to what their runs uploaded"
    assert labels(lines[3:]) == ["sandbox", "service", "listener", "memory"]


@pytest.mark.long
def test_the_time_from_a_message_to_its_job_is_measured(amqp_url: str) -> None:
    options = ("--rate", "20", "--seconds", "1", "--projects", "1", "--quiet", "2", "--amqp-url", amqp_url)
    title, median, _, refused = run_benchmark("reports", "latency", *options)
    assert title == "20 events a second over 1 projects, 1 s, SQLite:"
    assert median.startswith("  message to posted job: median ")
    assert refused == "  429 answers: 0"


@pytest.mark.long
def test_memory_is_printed_ten_times_and_at_the_end(amqp_url: str) -> None:
    options = ("--many", "40", "--quiet", "0.1", "--amqp-url", amqp_url)
    title, *lines = run_benchmark("reports", "memory", *options)
    assert title == "memory over 40 events at 1000 a second at most, SQLite:"
    assert len(lines) == 11
    assert all("service " in line and "listener " in line for line in lines)
