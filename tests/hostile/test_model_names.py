"""B47: a model's name is looked up, and nothing else: whatever it is, no file and no host is looked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.audited_server import CALLS
from tests.hostile.body_cases import B47_MODELS
from tests.hostile.case import Case, check
from tests.hostile.sending import BODY, get, post
from tests.hostile.watch import address_of
from tests.hostile.wire import Exchange, exchange
from tests.serving import Server


class Audited:
    def __init__(self, server: Server) -> None:
        self.address = address_of(server)
        self._calls = Path(server.temporary_dir.name) / CALLS

    def ask(self, case: Case) -> Exchange:
        return exchange(self.address, case.pieces())

    @property
    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


@pytest.fixture(scope="module")
def audited(tiny_model_dir: Path) -> Iterator[Audited]:
    """Behind all that is done for a first request: FastAPI reads the source of each route once."""
    flags = ("--max-model-len", "512", "--kv-cache-gib", "0.01")
    server = Server(tiny_model_dir, *flags, module="tests.hostile.audited_server")
    try:
        audited = Audited(server.wait_ready())
        for sent in (post(), post({**BODY, "model": "another"}), get(b"/v1/models/another")):
            exchange(audited.address, [sent])
        yield audited
    finally:
        server.clean_up()


def test_B47_what_the_start_opens_is_seen(audited: Audited, tiny_model_dir: Path) -> None:
    opened = [call for call in audited.calls if call.startswith("open ")]
    assert any(f"{tiny_model_dir.name}/" in call or "merges" in call for call in opened), opened
    assert any(call.startswith(("stat ", "lstat ")) for call in audited.calls)


@pytest.mark.parametrize("case", B47_MODELS, ids=lambda case: case.name)
def test_B47_no_file_and_no_host_is_looked_for(audited: Audited, case: Case) -> None:
    num_known = len(audited.calls)
    check(case, audited.ask(case))
    assert audited.calls[num_known:] == []
