"""`continuo serve` with a key and HTTPS, as real processes; and what it says of an open door."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import trustme

from server.api_keys import make_key
from server.config import ServeConfig
from server.serve import _warn_if_open
from tests.serving import Server
from tests.waiting import wait_for

PROMPT = "a prompt that nobody shall log"


@pytest.fixture(scope="module")
def key_and_line() -> tuple[str, str]:
    return make_key("ann", "infer,metrics")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    key_and_line: tuple[str, str],
    authority: trustme.CA,
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("doors")
    keys, pem = directory / "keys", directory / "server.pem"
    keys.touch(0o600)
    keys.write_text(key_and_line[1])
    pem.write_bytes(authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes())
    flags = ("--api-key-file", keys, "--ssl-certfile", pem, "--ssl-keyfile", pem)
    running = Server(tiny_model_dir, *map(str, flags))
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_the_openai_client_over_https_with_a_key(
    server: Server, key_and_line: tuple[str, str], trusting: ssl.SSLContext
) -> None:
    key, _ = key_and_line
    http = httpx.Client(verify=trusting)
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key=key, http_client=http) as client:
        reply = client.completions.create(model="tiny-gpt", prompt=PROMPT, max_tokens=5, seed=1)
        chunks = client.completions.create(
            model="tiny-gpt", prompt=PROMPT, max_tokens=5, seed=1, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text
    assert httpx.get(f"{server.address}/health", verify=trusting).status_code == 200
    assert httpx.get(f"{server.address}/v1/models", verify=trusting).status_code == 401
    wait_for(lambda: server.stderr.count("completion request_id=") == 2, "two lines are logged")
    assert "key=ann status=200" in server.stderr
    assert f"response_id={reply.id}" in server.stderr
    assert key not in server.stderr
    assert PROMPT not in server.stderr


def test_the_suggestion_fits_the_doors(server: Server) -> None:
    assert server.address.startswith("https://127.0.0.1:")
    assert f"curl -N {server.address}/v1/completions" in server.stderr
    assert "-H 'Authorization: Bearer YOUR_KEY'" in server.stderr


@pytest.mark.parametrize(
    ("address", "keys", "warns"),
    [
        ("127.0.0.1", "", False),
        ("::1", "", False),
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("192.0.2.1", "", True),
        ("0.0.0.0", "keys", False),
    ],
)
def test_an_open_door_is_said(
    address: str, keys: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _warn_if_open(ServeConfig(api_key_file=keys), address)
    assert ("--api-key-file" in caplog.text) is warns
