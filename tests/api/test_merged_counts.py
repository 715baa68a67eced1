"""Pages of several processes as one."""

from __future__ import annotations

import os

from prometheus_client import generate_latest

from server.api.engine_client import EngineClient
from server.api.metrics.merged_counts import (
    Counts,
    MergedPage,
    counts_of,
    growing,
    merged,
    packed,
    unpacked,
)
from server.api.metrics.metrics import Metrics
from server.api.workers.last_page import LastPages
from tests.api.prometheus_page import read_page


def metrics() -> Metrics:
    made = Metrics("m", EngineClient("nowhere"))
    made.on_response(200)
    made.on_submit([[1, 2, 3]], n=1, num_sequences=1, max_tokens=5)
    made.ttft.observe(0.03)
    return made


def test_a_page_alone_stays_what_it_is() -> None:
    made = metrics()
    page = MergedPage(unpacked(packed(merged([counts_of(made.collect())]))))
    text, alone = (each.decode().splitlines() for each in (generate_latest(page), made.page()))
    assert [line for line in text if "age_seconds{" not in line] == [
        line for line in alone if "age_seconds{" not in line
    ]


def test_what_each_counts_is_added_and_what_all_are_told_is_not() -> None:
    first, second = metrics(), metrics()
    second.on_response(200)
    second.on_response(404)
    both = read_page(
        generate_latest(
            MergedPage(merged([counts_of(each.collect()) for each in (first, second)]))
        ).decode()
    )
    alone = read_page(first.page().decode())
    assert both["continuo:http_responses_total"].total(status="200") == 3
    assert both["continuo:http_responses_total"].total(status="404") == 1
    ttft = "vllm:time_to_first_token_seconds"
    assert both[ttft].total("_count") == 2 * alone[ttft].total("_count") == 2
    assert both[ttft].total("_bucket", le="0.04") == 2
    limits = "continuo:max_connections"
    assert both[limits].total() == 2 * alone[limits].total()
    assert both.keys() == alone.keys()


def test_the_engines_own_is_that_of_who_has_heard_most() -> None:
    def told(tokens: float, running: float) -> list[Counts]:
        return [
            Counts("vllm:generation_tokens", "", "counter", {("a_total", ()): tokens}),
            Counts("vllm:num_requests_running", "", "gauge", {("b", ()): running}),
            Counts("continuo:parked_streams", "", "gauge", {("c", ()): 1.0}),
        ]

    page = merged([told(7, 0), told(9, 2), told(3, 1)])
    assert [list(each.samples.values()) for each in page] == [[9], [2], [3]]
    assert [each.name for each in growing(page, own=False)] == ["vllm:generation_tokens"]
    assert growing(page, own=True) == []


def test_the_limit_of_all_open_requests_is_one() -> None:
    name = "continuo:queue_limit_bytes"
    samples = {
        (name, (("queue", "open_requests"),)): 8.0,
        (name, (("queue", "kept_runs"),)): 4.0,
    }
    page = [Counts(name, "", "gauge", samples)]
    (limits,) = merged([page, page])
    assert list(limits.samples.values()) == [8.0, 8.0]
    assert list(page[0].samples.values()) == [8.0, 4.0]  # as it was


def test_the_last_page_outlives_its_writer() -> None:
    fd = os.memfd_create("pages")
    try:
        pages = LastPages(fd, 2)
        assert pages.read(0) == pages.read(1) == b""
        for page in (b"first", b"second one", b"third"):
            pages.write(1, page)
            assert LastPages(fd, 2).read(1) == page
        pages.write(1, bytes(1 << 20))  # not kept
        assert pages.read(1) == b"third"
        assert pages.read(0) == b""
    finally:
        os.close(fd)
