"""Where a running server can be reached: one TCP port, and sockets that only its own user can open."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.api.routes import methods_by_path
from tests.serving import Server
from tests.surface.exercise import COMPLETIONS, STRUCTURED

READ = {"GET", "HEAD"}
ROUTES = {
    "/": READ,
    "/docs": READ,
    "/docs/start.js": READ,
    "/docs/swagger-ui-bundle.js": READ,
    "/docs/swagger-ui.css": READ,
    "/health": READ,
    "/metrics": READ,
    "/openapi.json": READ,
    "/ready": READ,
    "/tokenizer_info": READ,
    "/v1/models": READ,
    "/v1/models/{model_id:path}": READ,
    "/version": READ,
    # these compute something from what they are sent, and keep nothing
    "/tokenize": {"POST"},
    "/detokenize": {"POST"},
    "/v1/chat/completions": {"POST"},  # a 404 with a sentence
    # these alone make the server do something that lasts: a completion, or reading one on
    "/v1/completions": {"POST"},
    "/v1/completions/{stream_id}/stream": READ,
}


def _sockets(server: Server) -> Iterator[psutil._common.pconn]:
    """Those of all its processes, the grammar's too; an inherited one comes more than once."""
    reply = server.client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 4, **STRUCTURED})
    assert reply.status_code == 200, reply.text
    pids = server.all_pids()
    assert len(pids) == 5, "supervisor, api, engine, grammar, grammar check"
    for pid in pids:
        yield from psutil.Process(pid).net_connections(kind="all")


def test_one_tcp_port_and_nothing_else_is_open_to_the_network(server: Server) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    inet = [each for each in _sockets(server) if each.family in (socket.AF_INET, socket.AF_INET6)]
    assert {each.type for each in inet} == {socket.SOCK_STREAM}
    listening = {tuple(each.laddr) for each in inet if each.status == psutil.CONN_LISTEN}
    assert listening == {(host, int(port))}
    others = [each for each in inet if each.status != psutil.CONN_LISTEN]
    assert all(each.laddr.port == int(port) for each in others), "a connection that it opened"


def test_unix_sockets_belong_to_the_user_alone(server: Server) -> None:
    named = {each.laddr for each in _sockets(server) if each.family == socket.AF_UNIX} - {""}
    (path,) = named  # an abstract one would have a name, too
    assert str(path).startswith(f"{server.temporary_dir.name}/continuo-")
    for place, mode in ((Path(str(path)), 0o600), (Path(str(path)).parent, 0o700)):
        status = place.stat()
        assert stat.S_IMODE(status.st_mode) == mode, place
        assert status.st_uid == os.getuid()


def test_no_route_changes_anything_but_completions() -> None:
    assert methods_by_path() == ROUTES


def test_a_method_that_is_not_in_the_table_is_refused(server: Server) -> None:
    for path, methods in ROUTES.items():
        url = path.replace("{model_id:path}", "tiny-gpt").replace("{stream_id}", "x")
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} - methods:
            status = server.client.request(method, url).status_code
            assert status == 405, (method, path)
