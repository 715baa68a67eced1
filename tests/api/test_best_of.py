"""best_of: more candidates than are returned, ranked by the mean logprob of what they generated."""

from __future__ import annotations

import httpx
import pytest

from server.sequence import SequenceRequest
from tests.api.conftest import EOS
from tests.api.fake_engine import FakeEngine
from tests.api.test_plain import complete

# of candidate 0, 1, ...: the logprob of each of its tokens; and how many tokens it has
LOGPROBS = [-3.0, -1.0, -2.0, -1.0, -4.0]
LENGTHS = [9, 1, 2, 1, 1]


@pytest.fixture
def engine(engine: FakeEngine) -> FakeEngine:
    def script(request: SequenceRequest) -> list[int]:
        return [ord("0") + request.choice] * LENGTHS[request.choice] + [EOS]

    engine.script = script
    engine.logprob = lambda request, _: LOGPROBS[request.choice]
    return engine


def digits(reply: dict[str, object]) -> list[str]:
    choices = reply["choices"]
    assert isinstance(choices, list)
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"][0] for choice in choices]


@pytest.mark.parametrize(
    ("n", "best_of", "shown"),
    [
        (None, 5, "1"),  # of two equal ones the first
        (1, 3, "1"),
        (2, 5, "13"),
        (4, 5, "1320"),  # 0 has a worse sum than 4, and a better mean
        (2, 2, "01"),  # nothing is left out: in the order of their draws
        (5, 5, "01234"),
        (1, 1, "0"),
    ],
)
def test_the_best_by_mean_logprob_are_returned(
    client: httpx.Client, engine: FakeEngine, n: int | None, best_of: int, shown: str
) -> None:
    reply = complete(client, n=n, best_of=best_of)
    assert digits(reply) == list(shown)
    assert [request.choice for request in engine.submitted] == list(range(best_of))
    num_tokens = sum(LENGTHS[:best_of]) + best_of
    assert reply["usage"]["completion_tokens"] == num_tokens  # all candidates count
    assert reply["usage"]["prompt_tokens"] == 2


def test_logprobs_that_are_only_ranked_by_are_not_shown(
    client: httpx.Client, engine: FakeEngine
) -> None:
    reply = complete(client, best_of=2)
    assert reply["choices"][0]["logprobs"] is None
    assert [request.params.logprobs for request in engine.submitted] == [0, 0]
    engine.submitted.clear()
    reply = complete(client, best_of=2, logprobs=2)
    assert reply["choices"][0]["logprobs"]["token_logprobs"][0] == -1.0
    assert [request.params.logprobs for request in engine.submitted] == [2, 2]
    engine.submitted.clear()
    complete(client, n=2, best_of=2)  # nothing is ranked
    assert [request.params.logprobs for request in engine.submitted] == [None, None]


def test_every_prompt_has_its_own_candidates(client: httpx.Client, engine: FakeEngine) -> None:
    engine.logprob = lambda request, _: -abs(request.choice - request.prompt_ids[0] % 5)
    reply = complete(client, prompt=[[0], [3], [2]], n=2, best_of=5, return_token_ids=True)
    assert digits(reply) == ["0", "1", "3", "2", "2", "1"]
    prompts = [choice["prompt_token_ids"] for choice in reply["choices"]]
    assert prompts == [[0], [0], [3], [3], [2], [2]]


def test_a_stream_takes_best_of_where_nothing_is_left_out(client: httpx.Client) -> None:
    body = {"prompt": "Hi", "stream": True, "best_of": 1}
    assert client.post("/v1/completions", json=body).status_code == 200


def test_candidates_count_in_what_a_request_may_cost(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.api.request.planning.MAX_COST", 5 * (2 + 16) - 1)
    response = client.post("/v1/completions", json={"prompt": "Hi", "best_of": 5})
    assert response.status_code == 400
    assert engine.submitted == []
    body = {"prompt": ["Hi"] * 9, "best_of": 128}
    assert client.post("/v1/completions", json=body).status_code == 400
