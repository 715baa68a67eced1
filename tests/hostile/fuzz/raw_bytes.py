"""Sends mutated requests, and takes nothing for an answer but HTTP of our shape, or an end."""

from __future__ import annotations

import json
import select
import socket
import time

from tests.hostile.case import check_error
from tests.hostile.fuzz.mutations import mutated
from tests.hostile.wire import Address, Response, Responses

_STATUSES = {200, 204, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 417, 421, 429, 431, 501}
_PATIENCE_S = 0.02  # without a byte: a request may be one that the server waits for
_LONG_S = 0.5  # of bytes that come: a mutation may have asked for thousands of tokens
_END_S = 3.0  # behind our end: generation and all


def run_raw(address: Address, seed: int) -> None:
    """Raises AssertionError or OSError."""
    responses = Responses()
    with socket.create_connection(address, timeout=_END_S) as sock:
        is_closed = False
        try:
            for piece in mutated(seed):
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    sock.sendall(piece)
            until = time.monotonic() + _LONG_S
            while not is_closed and time.monotonic() < until and _has_more(sock):
                is_closed = _receive(sock, responses)
            if not is_closed:
                sock.shutdown(socket.SHUT_WR)
            while not is_closed:
                is_closed = _receive(sock, responses)
        except (ConnectionResetError, BrokenPipeError):  # an answer may have come before it
            while not _receive(sock, responses):
                pass
    for response in responses.found:
        check_answer(response)


def _has_more(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], _PATIENCE_S)[0])


def _receive(sock: socket.socket, responses: Responses) -> bool:
    """Whether it is over."""
    try:
        data = sock.recv(65536)
    except ConnectionResetError:
        return True
    responses.feed(data)
    return not data


def check_answer(response: Response) -> None:
    assert response.status in _STATUSES, response
    if response.status >= 400:
        if response.body:  # to HEAD there is none
            check_error(response)
    elif response.header("content-type") == "application/json" and response.body:
        json.loads(response.body)
