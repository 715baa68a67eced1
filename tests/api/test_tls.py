"""HTTPS: the openai client plain and streamed over it, and what is refused before a process starts."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import trustme

from server.api.app import Doors
from server.config import ServeConfig
from server.errors import ConfigError
from server.startup import check_doors
from tests.api.conftest import MODEL, wait_until
from tests.api.serving_app import ServedApp, served_app


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate of 127.0.0.1 with its chain, and its key."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    directory = tmp_path_factory.mktemp("tls")
    chain, key = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(
        b"".join(each.bytes() for each in (*leaf.cert_chain_pems, authority.cert_pem))
    )
    key.write_bytes(leaf.private_key_pem.bytes())
    return {"ssl_certfile": str(chain), "ssl_keyfile": str(key)}


@pytest.fixture(scope="module")
def app(pem: dict[str, str]) -> Iterator[ServedApp]:
    with served_app(Doors(), **pem) as served:
        yield served


@pytest.fixture
def trusting(pem: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=pem["ssl_certfile"])


def test_the_openai_client_plain_and_streamed(app: ServedApp, trusting: ssl.SSLContext) -> None:
    http = httpx.Client(verify=trusting)
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key="none", http_client=http) as client:
        plain = client.completions.create(model=MODEL, prompt="a", max_tokens=26)
        chunks = client.completions.create(model=MODEL, prompt="a", max_tokens=26, stream=True)
        texts = [chunk.choices[0].text for chunk in chunks]
    assert plain.choices[0].text == "".join(texts) == "abcdefghijklmnopqrstuvwxyz"
    assert len(texts) >= 26


def test_a_long_reply_comes_whole(app: ServedApp, trusting: ssl.SSLContext) -> None:
    """Larger than a TLS record, and than the buffers of a socket."""
    with httpx.Client(base_url=app.url, verify=trusting, timeout=30) as client:
        body = {"prompt": "a" * 200, "n": 64, "max_tokens": 20, "echo": True, "logprobs": 20}
        assert len(client.post("/v1/completions", json=body).json()["choices"]) == 64
        streamed = client.post("/v1/completions", json={**body, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n")
    assert len(streamed) > 1 << 20


def test_a_client_that_leaves_ends_its_request(app: ServedApp, trusting: ssl.SSLContext) -> None:
    script, app.engine.script = app.engine.script, lambda _: [ord("x")]  # then it hangs
    try:
        with httpx.Client(base_url=app.url, verify=trusting) as client:
            body = {"prompt": "a", "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()  # kept: a dropped iterator would close the connection
                next(lines)
                assert app.engine.num_running == 1
        wait_until(lambda: app.engine.num_running == 0)
    finally:
        app.engine.script = script


def test_plain_http_gets_no_answer_and_breaks_nothing(
    app: ServedApp, trusting: ssl.SSLContext
) -> None:
    url = httpx.URL(app.url)
    with socket.create_connection((url.host, url.port or 443), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP/" not in connection.recv(65536)
    assert httpx.get(f"{app.url}/health", verify=trusting).status_code == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_protocols_are_refused(app: ServedApp, trusting: ssl.SSLContext) -> None:
    trusting.maximum_version = ssl.TLSVersion.TLSv1_1
    trusting.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{app.url}/health", verify=trusting)


def test_a_good_pair_is_accepted(pem: dict[str, str]) -> None:
    check_doors(ServeConfig(**pem))


@pytest.mark.parametrize("flag", ["ssl_certfile", "ssl_keyfile"])
def test_half_a_pair_is_refused(pem: dict[str, str], flag: str) -> None:
    with pytest.raises(ConfigError, match="together"):
        ServeConfig(**{flag: pem[flag]})


@pytest.mark.parametrize("flag", ["ssl_certfile", "ssl_keyfile"])
def test_a_missing_file_is_named_with_its_flag(pem: dict[str, str], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} .* cannot be read"):
        check_doors(ServeConfig(**{**pem, flag: "/nowhere.pem"}))


def test_files_that_do_not_fit_are_refused(pem: dict[str, str], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("127.0.0.1").private_key_pem.bytes())
    empty = tmp_path / "empty.pem"
    empty.touch()
    for fields in ({"ssl_keyfile": str(other)}, {"ssl_certfile": str(empty)}):
        with pytest.raises(ConfigError, match="are not a certificate and its unencrypted"):
            check_doors(ServeConfig(**{**pem, **fields}))


def test_an_encrypted_key_is_refused_without_a_question(
    pem: dict[str, str], tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(pem["ssl_keyfile"]).read_bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="unencrypted"):
        check_doors(ServeConfig(**{**pem, "ssl_keyfile": str(encrypted)}))
