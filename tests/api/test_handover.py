"""What passes between two workers: the bytes of a request, slow readers, hung owners, clients that leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from server.api.http.limits import HttpLimits
from server.api.workers.upstream import MAX_UNREAD_BYTES
from tests.api.conftest import wait_until
from tests.api.prometheus_page import read_page
from tests.api.worker_rig import BODY, RESUMABLE, Workers, alphabet, begun, owner_of, workers

_CUT_AFTER_S = 5.0
_LARGE = {**RESUMABLE, "n": 64, "max_tokens": 240}  # two megabytes of events


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with workers(cut_after_s=_CUT_AFTER_S, resume_memory_mib=1) as running:
        # each connection inherits it: else the kernel takes megabytes for a client that reads nothing
        running.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        yield running


def path_of(stream_id: str) -> str:
    return f"/v1/completions/{stream_id}/stream"


def value(running: Workers, name: str, **labels: str) -> float:
    with running.client() as client:
        family = read_page(client.get("/metrics").text)[name]
    return next(
        number
        for (_, found), number in family.samples.items()
        if labels.items() <= dict(found).items()
    )


def refused(running: Workers, status: str) -> float:
    with running.client() as client:
        samples = read_page(client.get("/metrics").text)["continuo:http_responses_total"].samples
    return sum(number for (_, found), number in samples.items() if status in dict(found).values())


@contextmanager
def client_elsewhere(running: Workers, owner: int) -> Iterator[httpx.Client]:
    """Of another worker; its kernel takes little that it does not read."""
    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for _ in range(64):
        transport = httpx.HTTPTransport(socket_options=[option])
        with httpx.Client(base_url=running.url, transport=transport, timeout=20) as client:
            if owner_of(begun(client)[0]) != owner:
                yield client
                return
    pytest.fail("all connections went to the owner")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "POST"])
def test_the_body_of_a_request_is_no_second_request_there(two: Workers, method: str) -> None:
    second = json.dumps(BODY).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    smuggled = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(second), second)
    with two.one_of_each() as clients:
        streams = [begun(client) for client in clients]
        num_submitted = two.engines.num_submitted
        for client in clients:
            for stream_id, text in streams:
                for content in (smuggled, iter([smuggled])):
                    got = client.request(method, path_of(stream_id), content=content)
                    if method == "GET":
                        assert (got.status_code, got.text) == (200, text)
                    else:
                        assert (got.status_code, "error" in got.json()) == (405, True)
        time.sleep(0.2)
    assert two.engines.num_submitted == num_submitted


def test_a_head_as_large_as_may_be_is_taken_there_too(two: Workers) -> None:
    """It grows by nothing on its way."""
    limits, body = HttpLimits(), json.dumps(BODY).encode()
    for n in range(6):  # some of the keys are the other worker's
        lines = [
            b"Host:localhost",
            b"Content-Type:application/json",
            b"Content-Length:%d" % len(body),
            b"Idempotency-Key:large-%d" % n,
        ]
        while len(lines) < limits.max_headers - 1:
            lines.append(b"a:b")
        rest = limits.max_header_bytes - sum(len(line) + 2 for line in lines) - 2
        lines.append(b"x:" + (rest - 2) * b"y")
        head = b"\r\n".join([b"POST /v1/completions HTTP/1.1", *lines, b"", b""])
        with socket.create_connection(two.listener.getsockname()) as sock:
            sock.settimeout(20)
            sock.sendall(head + body)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 "), n


def test_what_is_announced_as_too_large_is_not_waited_for(two: Workers) -> None:
    for n in range(4):
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: 5000000\r\nIdempotency-Key: large-{n}\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(two.listener.getsockname()) as sock:
            sock.settimeout(5)
            sock.sendall(head.encode())
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 413 "), n


def test_requests_behind_one_that_is_handed_over_are_answered_in_order(two: Workers) -> None:
    with two.one_of_each() as clients:
        ids = [begun(client)[0] for client in clients]
    paths = [path_of(ids[0]), path_of(ids[1]), "/nowhere", path_of(ids[1]), "/version"]
    ends = ["", "", "", "", "Connection: close\r\n"]
    requests = [
        f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: nr-{n}\r\n{end}\r\n"
        for n, (path, end) in enumerate(zip(paths, ends, strict=True))
    ]
    found = b""
    with socket.create_connection(two.listener.getsockname()) as sock:
        sock.settimeout(20)
        sock.sendall("".join(requests).encode())
        while data := sock.recv(1 << 16):
            found += data
    heads = found.lower().split(b"\r\n\r\n")[:-1]
    assert [head[9:12] for head in heads] == [b"200", b"200", b"404", b"200", b"200"]
    assert [f"x-request-id: nr-{n}".encode() in head for n, head in enumerate(heads)] == [True] * 5


@pytest.mark.parametrize("owner", [0, 1])
def test_a_stalled_reader_at_another_worker_is_parked_and_cut(two: Workers, owner: int) -> None:
    """Of a running stream that is larger than what is kept: what waits for it is bounded at both."""
    engine, name = two.engines.each[owner], "continuo:slow_readers_closed_total"
    num_closed = value(two, name)
    with client_elsewhere(two, owner) as client, two.one_of_each() as clients:
        engine.script, engine.step_s = (lambda _: [1, 2, 3] * 80), 0.05
        with clients[owner].stream("POST", "/v1/completions", json=_LARGE) as first:
            stream_id = next(first.iter_lines()).partition(": ")[2].partition(":")[0]
        since, engine.step_s = time.monotonic(), 0.02
        with client.stream("GET", path_of(stream_id)) as got:
            wait_until(lambda: value(two, "continuo:parked_streams") == 1)
            assert engine.num_running == 0
            num_on_the_way = value(two, "continuo:queue_bytes", queue="handed_over")
            assert 0 < num_on_the_way <= MAX_UNREAD_BYTES
            kept = value(two, "continuo:queue_bytes", queue="kept_runs")
            assert kept <= 1.25 * value(two, "continuo:queue_limit_bytes", queue="kept_runs")
            wait_until(lambda: value(two, name) == num_closed + 1)
            assert _CUT_AFTER_S <= time.monotonic() - since < _CUT_AFTER_S + 5
            with pytest.raises(httpx.TransportError):
                got.read()
    engine.script, engine.step_s = alphabet, 0.0
    assert value(two, "continuo:queue_bytes", queue="handed_over") == 0
    assert value(two, "continuo:parked_streams") == 0
    wait_until(lambda: sum(two.board.connections()) == 0)


def test_a_client_that_leaves_a_hung_owner_leaves_nothing(two: Workers) -> None:
    with two.one_of_each() as clients:
        stream_id, text = begun(clients[1])
        os.kill(two.processes[1].pid, signal.SIGSTOP)
        try:
            for _ in range(4):
                with two.client() as client, pytest.raises(httpx.ReadTimeout):
                    client.get(path_of(stream_id), timeout=0.3)
            assert clients[0].get("/ready").status_code == 200
        finally:
            os.kill(two.processes[1].pid, signal.SIGCONT)
        assert clients[0].get(path_of(stream_id)).text == text
    wait_until(lambda: sum(two.board.connections()) == 0)


def test_a_handed_over_request_has_one_line_in_the_log_and_one_count(two: Workers) -> None:
    with two.one_of_each() as clients:
        stream_id, _ = begun(clients[1])
        before = sum(two.log(n).count("once-only") for n in range(2))
        num_counted = refused(two, "404")
        missing = stream_id[:-2] + ("01" if stream_id[-2] != "0" else "11")
        assert owner_of(missing) == 1
        got = clients[0].get(path_of(missing), headers={"X-Request-Id": "once-only"})
        assert (got.status_code, got.headers["x-request-id"]) == (404, "once-only")
        wait_until(lambda: sum(two.log(n).count("once-only") for n in range(2)) == before + 1)
        assert two.log(1).count("once-only") == before + 1
        assert refused(two, "404") == num_counted + 1


def test_a_worker_killed_under_requests_that_are_handed_over() -> None:
    """Those that have begun are cut, others are told; the front keeps nothing of either."""
    with workers() as running:
        with running.one_of_each() as clients, running.engines.slow(0.05):
            with clients[1].stream("POST", "/v1/completions", json=RESUMABLE) as first:
                stream_id = next(first.iter_lines()).partition(": ")[2].partition(":")[0]
                with clients[0].stream("GET", path_of(stream_id)) as second:
                    lines = second.iter_lines()
                    next(lines)
                    running.kill(1)
                    with pytest.raises(httpx.RemoteProtocolError):
                        list(lines)
            with running.client() as client, ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(client.get, path_of(stream_id))
                time.sleep(0.3)
                assert not waiting.done()
                running.processes[0].send_signal(signal.SIGTERM)  # the front drains meanwhile
                got = waiting.result(20)
            assert (got.status_code, got.headers["retry-after"]) == (503, "1")
            error = got.json()["error"]
            assert (error["code"], error["type"]) == ("worker_restarting", "server_error")
            assert "x-request-id" in got.headers
        assert running.processes[0].wait(20) == 0
