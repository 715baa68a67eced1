"""A key's limits as its owner sees them: 429 and `x-ratelimit-...`; what costs nothing."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.api.app import Doors
from server.api_keys import KeyFile
from tests.api.conftest import MODEL, wait_until
from tests.api.prometheus_page import read_page
from tests.api.serving_app import ALPHABET, ServedApp, error_of, served_app

URL = "/v1/completions"
BODY = {"prompt": "a", "max_tokens": 3}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.touch(0o600)
    return file


@pytest.fixture(scope="module")
def app(file: Path) -> Iterator[ServedApp]:
    write(file, "first", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.api_keys._CHECK_EVERY_S", 0.0)
        with served_app(Doors(keys=KeyFile(str(file)), origins=("*",))) as served:
            yield served


def write(file: Path, name: str, limits: str) -> None:
    """The key of that name is the name itself; there is one for the metrics, too."""
    lines = [(name, f"infer {limits}"), ("metrics", "metrics"), ("other", "infer")]
    file.write_text(
        "".join(f"{n} {hashlib.sha256(n.encode()).hexdigest()} {words}\n" for n, words in lines)
    )


class Caller:
    """Has a key of its own, with limits."""

    def __init__(self, app: ServedApp, file: Path, limits: str) -> None:
        self.name = f"key-{uuid.uuid4().hex[:8]}"
        self._file = file
        self.limit(limits)
        self.http = httpx.Client(base_url=app.url, timeout=20, headers=self.headers(self.name))
        self.url = app.url

    def limit(self, limits: str) -> None:
        write(self._file, self.name, limits)

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def post(self, **headers: str) -> httpx.Response:
        return self.http.post(URL, json=BODY, headers=headers)

    def num_limited(self) -> float:
        page = read_page(self.http.get("/metrics", headers=self.headers("metrics")).text)
        return page["vllm:admission_rejections_total"].total(reason="rate_limited")


Make = Callable[[str], Caller]


@pytest.fixture
def caller(app: ServedApp, file: Path) -> Iterator[Make]:
    """Makes callers with the limits that it is given."""
    with contextlib.ExitStack() as stack:

        def make(limits: str) -> Caller:
            made = Caller(app, file, limits)
            stack.enter_context(made.http)
            return made

        yield make


def limits_in(reply: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {
        name.removeprefix(prefix): value
        for name, value in reply.headers.items()
        if name.startswith(prefix)
    }


def test_requests_a_second(caller: Make) -> None:
    ann = caller("requests_per_s=0.02")
    served = ann.post()
    assert served.status_code == 200
    shown = limits_in(served)
    assert 49 < float(shown.pop("reset-requests").removesuffix("s")) <= 50
    assert shown == {"limit-requests": "1", "remaining-requests": "0"}
    before = ann.num_limited()
    refused = ann.post()
    error = error_of(refused, 429)
    assert error["code"] == "rate_limit_exceeded"
    assert "requests a second" in error["message"]
    assert 38 <= int(refused.headers["retry-after"]) <= 62
    assert "x-should-retry" not in refused.headers
    assert limits_in(refused)["remaining-requests"] == "0"
    assert ann.num_limited() == before + 1
    other = ann.http.post(URL, json=BODY, headers=ann.headers("other"))
    assert other.status_code == 200
    assert limits_in(other) == {}


def test_tokens_a_minute_are_settled_by_what_was_used(caller: Make) -> None:
    ann = caller("tokens_per_min=400")
    reply = ann.http.post(URL, json={"prompt": "abcd", "max_tokens": 100, "n": 2})
    used = reply.json()["usage"]["total_tokens"]
    assert used < 100  # the alphabet, twice
    # By now it is settled: charged were 204.
    refused = ann.http.post(URL, json={"prompt": "abcd", "max_tokens": 250, "n": 2})
    assert "tokens a minute" in error_of(refused, 429)["message"]
    assert 0 <= int(limits_in(refused)["remaining-tokens"]) - (400 - used) <= 10
    assert ann.http.post(URL, json={"prompt": "abcd", "max_tokens": 100}).status_code == 200


def test_open_requests(app: ServedApp, caller: Make) -> None:
    ann = caller("concurrent=1")
    app.engine.script = lambda _: [97]
    body = {"prompt": "a", "max_tokens": 50, "stream": True}
    with ann.http.stream("POST", URL, json=body) as stream:
        lines = stream.iter_lines()  # kept: dropping it would hang up
        next(lines)
        app.engine.script = lambda _: ALPHABET
        with httpx.Client(base_url=app.url, headers=ann.headers(ann.name)) as second:
            refused = second.post(URL, json=BODY)
            assert "open requests" in error_of(refused, 429)["message"]
            assert refused.headers["retry-after"] in ("1", "2")
    wait_until(lambda: ann.post().status_code == 200)
    for _ in range(3):
        assert ann.post().status_code == 200


def test_a_repeat_and_a_resumed_stream_cost_nothing(caller: Make) -> None:
    ann = caller("requests_per_s=0.01")
    key = {"Idempotency-Key": "one"}
    body = {**BODY, "stream": True, "stream_options": {"resumable": True}}
    first = ann.http.post(URL, json=body, headers=key)
    assert first.status_code == 200
    for _ in range(3):
        again = ann.http.post(URL, json=body, headers=key)
        assert (again.status_code, again.text) == (200, first.text)
        assert again.headers["idempotent-replayed"] == "true"
    stream_id = first.text.split("id: ")[1].split(":")[0]
    assert ann.http.get(f"{URL}/{stream_id}/stream").status_code == 200
    error_of(ann.http.post(URL, json=body, headers={"Idempotency-Key": "two"}), 429)
    error_of(ann.post(), 429)


def test_what_is_refused_costs_nothing(caller: Make) -> None:
    ann = caller("requests_per_s=0.01 tokens_per_min=1000 concurrent=1")
    for body in ({"prompt": ""}, {"prompt": "a", "max_tokens": 10**6}, {"prompt": "a", "n": 0}):
        error_of(ann.http.post(URL, json=body), 400)
    assert ann.post().status_code == 200


def test_the_file_may_be_written_again_at_any_time(caller: Make) -> None:
    ann = caller("requests_per_s=0.01")
    assert ann.post().status_code == 200
    ann.limit("requests_per_s=0.01")
    error_of(ann.post(), 429)
    ann.limit("requests_per_s=2")
    assert ann.post().status_code == 200
    ann.limit("")
    for _ in range(5):
        assert limits_in(ann.post()) == {}


def test_a_web_page_may_read_the_headers(caller: Make) -> None:
    ann = caller("requests_per_s=5")
    exposed = ann.post(Origin="https://example.org").headers["access-control-expose-headers"]
    assert "x-ratelimit-remaining-requests" in exposed


def test_the_openai_client_sees_a_rate_limit(app: ServedApp, caller: Make) -> None:
    ann = caller("requests_per_s=0.01")
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key=ann.name, max_retries=0) as client:
        raw = client.completions.with_raw_response.create(model=MODEL, prompt="a", max_tokens=3)
        assert raw.headers["x-ratelimit-limit-requests"] == "1"
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=MODEL, prompt="a")
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) > 60
    assert app.engine.submitted[-1].tenant == ann.name


def test_the_openai_client_waits_as_long_as_it_is_told(app: ServedApp, caller: Make) -> None:
    ann = caller("requests_per_s=1")
    with openai.OpenAI(base_url=f"{app.url}/v1", api_key=ann.name, max_retries=2) as client:
        for _ in range(2):
            assert client.completions.create(model=MODEL, prompt="a", max_tokens=2).choices
