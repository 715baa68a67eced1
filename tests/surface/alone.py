"""A server in a network of its own, in which there is nothing but itself: run by test_egress.py under
`unshare`. Prints what the kernel has counted since the network was made.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.serving import Server
from tests.surface.exercise import COMPLETIONS, GOOD, PAGES

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_ELSEWHERE = "192.0.2.1"  # for documentation: nobody's


def main() -> None:
    raise_loopback()
    if sys.argv[2:]:  # so that the test sees that the kernel counts
        attempt(sys.argv[2])
    server = Server(Path(sys.argv[1]))
    try:
        port = int(server.wait_ready().address.rpartition(":")[2])
        statuses = [ask(port, "GET", page) for page in PAGES]
        statuses += [ask(port, "POST", COMPLETIONS, body) for body in GOOD]
        print(json.dumps({"statuses": statuses, **counted()}))
    finally:
        server.client.close()
        server.end()


def raise_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def attempt(kind: str) -> None:
    with socket.socket(type=getattr(socket, kind)) as outgoing, contextlib.suppress(OSError):
        outgoing.connect((_ELSEWHERE, 53))


def ask(port: int, method: str, path: str, body: Any = None) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = None if body is None else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def counted() -> dict[str, int]:
    """Connections that were begun, datagrams that were sent, and what had no way out."""
    counts: dict[str, int] = {}
    lines = Path("/proc/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind = names.split(":")[0]
        pairs = zip(names.split()[1:], values.split()[1:], strict=True)
        counts |= {f"{kind}{name}": int(value) for name, value in pairs}
    for line in Path("/proc/net/snmp6").read_text().splitlines():
        name, value = line.split()
        counts[name] = int(value)
    wanted = (
        "TcpActiveOpens",
        "UdpOutDatagrams",
        "Udp6OutDatagrams",
        "IpOutNoRoutes",
        "Ip6OutNoRoutes",
    )
    return {name: counts[name] for name in wanted}


if __name__ == "__main__":
    main()
