"""Several api processes behind one port: resuming, Idempotency-Key and deaths, over real sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection

import httpx
import pytest
import trustme

from server.api.workers.worker import Worker
from tests.api.conftest import wait_until
from tests.api.worker_rig import BODY, RESUMABLE, Workers, begun, owner_of, workers


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with workers() as running:
        yield running


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    directory = tmp_path_factory.mktemp("tls")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(
        b"".join(each.bytes() for each in (*leaf.cert_chain_pems, authority.cert_pem))
    )
    key.write_bytes(leaf.private_key_pem.bytes())
    return {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}


def path_of(stream_id: str) -> str:
    return f"/v1/completions/{stream_id}/stream"


def check_resumes_everywhere(running: Workers) -> None:
    with running.one_of_each() as clients:
        for client in clients:
            stream_id, text = begun(client)
            events = text.split("\n\n")[:-1]
            middle = len(events) // 2
            assert text.endswith("data: [DONE]\n\n")
            for other in clients:
                got = other.get(path_of(stream_id))
                assert (got.status_code, got.text) == (200, text)
                assert got.headers["content-type"].startswith("text/event-stream")
                assert len(got.headers.get_list("date")) == 1
                assert len(got.headers.get_list("x-request-id")) == 1
                last = {"Last-Event-ID": f"{stream_id}:{middle - 1}"}
                rest = other.get(path_of(stream_id), headers=last)
                assert rest.text.split("\n\n")[:-1] == events[middle:]


def test_a_stream_is_resumed_at_any_worker(two: Workers) -> None:
    check_resumes_everywhere(two)


def test_a_stream_is_resumed_at_any_worker_over_tls(pem: dict[str, str]) -> None:
    with workers(**pem) as running:
        check_resumes_everywhere(running)
        check_runs_once(running)


def test_what_is_refused_there_is_refused_here(two: Workers) -> None:
    with two.one_of_each() as clients:
        stream_id, text = begun(clients[0])
        unknown = stream_id[:-3] + ("000" if stream_id[-3:] != "000" else "110")
        for client in clients:
            got = client.get(path_of(unknown))
            assert (got.status_code, got.json()["error"]["code"]) == (404, "stream_not_found")
            nobodys = client.get(path_of("f" * 32))  # no worker has that number
            assert nobodys.status_code == 404
            wrong = client.get(path_of(stream_id), headers={"Last-Event-ID": "x"})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "Last-Event-ID")
            last = len(text.split("\n\n")) - 2
            over = {"Last-Event-ID": f"{stream_id}:{last}"}
            assert client.get(path_of(stream_id), headers=over).status_code == 204
            head = client.head(path_of(stream_id))
            assert (head.status_code, head.content) == (200, b"")
            assert client.get("/ready").status_code == 200  # the connection goes on


def test_a_running_stream_is_taken_over_through_another_worker(two: Workers) -> None:
    with (
        two.one_of_each() as clients,
        two.engines.slow(0.05),
        clients[1].stream("POST", "/v1/completions", json=RESUMABLE) as first,
        ExitStack() as stack,
    ):
        lines = first.iter_lines()
        stream_id = next(lines).partition(": ")[2].partition(":")[0]
        assert owner_of(stream_id) == 1
        with two.engines.paused():  # the first has not ended when the second begins
            second = stack.enter_context(clients[0].stream("GET", path_of(stream_id)))
            read = second.iter_lines()
            next(read)
        assert "".join(read).endswith("data: [DONE]")
        with pytest.raises(httpx.TransportError):  # cut: another one reads
            list(lines)


def check_runs_once(running: Workers) -> None:
    for n in range(2):  # half of the keys are another worker's
        for body in (BODY, RESUMABLE):
            key = {"Idempotency-Key": f"once-{n}-{'stream' in body}"}
            with running.one_of_each() as clients:
                replies = [
                    client.post("/v1/completions", json=body, headers=key) for client in clients * 2
                ]
            assert [each.status_code for each in replies] == [200] * 4
            assert len({each.text for each in replies}) == 1  # with the one id, and the seed
            replayed = [each.headers.get("idempotent-replayed") for each in replies]
            assert replayed == [None, "true", "true", "true"]
            other = {**body, "prompt": "b"}
            with running.one_of_each() as clients:
                again = [
                    client.post("/v1/completions", json=other, headers=key) for client in clients
                ]
            assert [each.status_code for each in again] == [409, 409]


def test_a_repeat_at_another_worker_gets_the_same_bytes(two: Workers) -> None:
    check_runs_once(two)


def test_repeats_at_the_same_time_run_once(two: Workers) -> None:
    with two.engines.slow(0.01):
        with two.one_of_each() as clients, ThreadPoolExecutor(8) as pool, ExitStack() as stack:
            clients += [stack.enter_context(two.client()) for _ in range(6)]
            key = {"Idempotency-Key": "at once"}
            replies = list(
                pool.map(lambda each: each.post("/v1/completions", json=BODY, headers=key), clients)
            )
        assert len({each.text for each in replies}) == 1
        assert sum("idempotent-replayed" not in each.headers for each in replies) == 1


def test_a_body_in_chunks_and_one_that_is_too_large_are_handed_over(two: Workers) -> None:
    body = httpx.Request("POST", two.url, json=BODY).content
    headers = {"Content-Type": "application/json"}
    with two.one_of_each() as clients:
        for n in range(4):
            headers["Idempotency-Key"] = f"chunks-{n}"
            for client in clients:
                parts = iter([body[:5], body[5:]])
                got = client.post("/v1/completions", content=parts, headers=headers)
                assert got.status_code == 200, got.text
                large = client.post("/v1/completions", content=b" " * (5 << 20), headers=headers)
                assert large.status_code == 413


def test_a_client_that_leaves_ends_nothing_that_is_kept(two: Workers) -> None:
    content = httpx.Request("POST", two.url, json=BODY).content  # the bytes of the repeats
    for n in range(3):  # at least one of these keys is the other worker's
        key = {"Idempotency-Key": f"left-{n}"}
        with two.engines.paused():
            wait_until(lambda: sum(two.board.connections()) == 0)
            with contextlib.closing(HTTPConnection(*two.listener.getsockname())) as leaving:
                headers = {"Content-Type": "application/json", **key}
                leaving.request("POST", "/v1/completions", content, headers)
                wait_until(lambda: two.engines.num_running == 1)
            wait_until(lambda: sum(two.board.connections()) == 0)
            assert two.engines.num_running == 1
        with two.client() as client:
            got = client.post("/v1/completions", json=BODY, headers=key)
        assert got.headers["idempotent-replayed"] == "true"


def test_a_slow_reader_at_another_worker_holds_back_what_it_is_sent(two: Workers) -> None:
    """Its stream waits where it is kept: what lies on the way is bounded."""
    with two.one_of_each() as clients:
        stream_id, text = begun(clients[1])
        host, port = two.listener.getsockname()
        del clients
    found = b""
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.sendall(f"GET {path_of(stream_id)} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        while data := sock.recv(256):
            found += data
            time.sleep(0.001)
    assert found.count(b"\n\n") == text.count("\n\n")


def test_connections_are_shared_evenly(two: Workers) -> None:
    """Of three bursts one: a busy machine may stop a worker in the midst of two of them."""
    found = [_counts_of_a_burst(two)]
    while min(found[-1]) < 24 and len(found) < 3:
        found.append(_counts_of_a_burst(two))
    assert min(found[-1]) >= 24, found


def _counts_of_a_burst(two: Workers) -> list[int]:
    """How 64 connections were shared, as quick as one client can be."""
    wait_until(lambda: sum(two.board.connections()) == 0)
    with ExitStack() as stack:
        for _ in range(64):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(two.listener.getsockname())
        wait_until(lambda: sum(two.board.connections()) == 64)
        return list(two.board.connections())


def test_a_worker_that_hangs_holds_up_no_new_connection(two: Workers) -> None:
    """It has the fewest, and what is left to it is taken by the other in a moment."""
    wait_until(lambda: sum(two.board.connections()) == 0)
    os.kill(two.processes[1].pid, signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            for _ in range(16):
                client = stack.enter_context(two.client())
                assert owner_of(begun(client)[0]) == 0
            assert client.get("/metrics").status_code == 200
    finally:
        os.kill(two.processes[1].pid, signal.SIGCONT)


def test_a_killed_worker_takes_only_its_own_along() -> None:
    with workers() as running, running.one_of_each() as clients:
        kept, text = begun(clients[0])
        lost, _ = begun(clients[1])
        with (
            running.engines.slow(0.02),
            clients[0].stream("POST", "/v1/completions", json=RESUMABLE) as unharmed,
        ):
            lines = unharmed.iter_lines()
            next(lines)
            running.kill(1)
            with running.client() as client:  # whoever is left takes it
                started = time.monotonic()
                gone = client.get(path_of(lost))
                assert time.monotonic() - started > 4  # it waits for a successor
                assert gone.status_code == 503
                assert gone.headers["retry-after"] == "1"
                assert gone.json()["error"]["code"] == "worker_restarting"
                assert client.get(path_of(kept)).text == text
            assert "".join(lines).endswith("data: [DONE]")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_get_once_it_is_there, clients[0], path_of(lost))
            running.start(1)
            running.wait_ready(1)
            assert waiting.result(60).status_code == 404  # its successor knows nothing of it
        with running.one_of_each() as again:
            stream_id, text = begun(again[1])
            assert again[0].get(path_of(stream_id)).text == text


def _get_once_it_is_there(client: httpx.Client, path: str) -> httpx.Response:
    """A worker may take longer to start than a request waits for it."""
    for _ in range(10):
        got = client.get(path)
        if got.status_code != 503:
            break
        assert got.json()["error"]["code"] == "worker_restarting"
    return got


def test_a_request_whose_worker_dies_is_told_so_and_runs_again() -> None:
    with workers() as running, running.one_of_each() as clients:
        value = next(f"dies-{n}" for n in range(64) if _runs_at(running, f"dies-{n}") == 1)
        key = {"Idempotency-Key": value}
        with running.engines.slow(0.1), ThreadPoolExecutor(1) as pool:
            done = pool.submit(clients[0].post, "/v1/completions", json=BODY, headers=key)
            wait_until(lambda: running.engines.num_running == 1)
            running.kill(1)
            assert done.result(20).status_code == 503
            wait_until(lambda: running.engines.num_running == 0)
        running.start(1)
        running.wait_ready(1)
        again = clients[0].post("/v1/completions", json=BODY, headers=key)
        assert again.status_code == 200
        assert "idempotent-replayed" not in again.headers


def _runs_at(running: Workers, value: str) -> int:
    return Worker(0, running.board, "", 0, 0).owner_of_key("", value)
