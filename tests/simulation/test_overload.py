"""Overload by a clock of its own: what is served, how quickly that recovers, and who is refused."""

from __future__ import annotations

import statistics
from functools import lru_cache

import pytest

from server.api.admission.admission import SURE
from server.config import ServeConfig
from tests.simulation.overload import NUM_ROWS, Request, World

MAX_QUEUE_S = 4.0
FALL_S = 20.0  # when the load does


@lru_cache(maxsize=1)
def peak() -> tuple[float, float, float]:
    """Tokens and requests a second, and the median TTFT, with every row busy and nobody waiting."""
    world = World(MAX_QUEUE_S)
    world.on_end = lambda _: world.send()
    for _ in range(NUM_ROWS):
        world.send()
    world.run(24)
    done = [request for request in world.requests if request.status == "done"]
    num_ended = sum(4 <= request.token_s[-1] < 20 for request in done)
    ttft_s = statistics.median(request.ttft_s for request in done if request.arrived_s > 4)
    return world.tokens_per_s(4, 20), num_ended / 16, ttft_s


def flooded(max_queue_s: float, seed: int = 1) -> World:
    world = World(max_queue_s, seed)
    world.offer(5 * peak()[1], FALL_S)
    return world


def probed(world: World) -> list[Request]:
    """Short requests from the fall on, ten a second."""
    num_before = [0]

    def note() -> None:
        num_before[0] = len(world.requests)

    world.at(FALL_S, note)
    for number in range(100):
        world.at(FALL_S + number / 10, lambda: world.send(prompt=32, max_tokens=2))
    world.run(FALL_S + 12)
    return world.requests[num_before[0] :]


@pytest.mark.parametrize("seed", [1, 2])
def test_at_five_times_its_load_it_serves_as_much_as_at_its_peak_and_recovers(seed: int) -> None:
    world = flooded(MAX_QUEUE_S, seed)
    probes = probed(world)
    assert world.tokens_per_s(MAX_QUEUE_S, FALL_S) >= 0.95 * peak()[0]
    slow = [probe for probe in probes if probe.ttft_s > 2 * peak()[2]]
    assert max(probe.arrived_s for probe in slow) - FALL_S <= 5
    served = [request.ttft_s for request in world.requests if request.status == "done"]
    assert max(served) <= MAX_QUEUE_S + 0.1


@pytest.mark.parametrize("max_queue_s", [2.0, 8.0])
def test_recovery_takes_as_long_as_the_queue_may_be(max_queue_s: float) -> None:
    """Whoever was let in is served: there is nothing else to recover from."""
    probes = probed(flooded(max_queue_s))
    slow = [probe for probe in probes if probe.ttft_s > 2 * peak()[2]]
    last_s = max(probe.arrived_s for probe in slow) - FALL_S
    assert SURE * max_queue_s - 0.5 <= last_s <= max_queue_s + 1  # and until the next row is free


def test_a_burst_of_clients_that_come_back_when_told_to_is_served() -> None:
    """Thirty seconds of work at once; they come back twice."""
    world = World(ServeConfig().max_queue_seconds)
    for _ in range(NUM_ROWS):  # the rates are known
        world.send()
    world.offer(2 * peak()[1], 3.0)
    world.run(8)
    num_before = len(world.requests)
    for _ in range(int(30 * peak()[1])):
        world.send_politely()
    world.run(80)
    burst = world.requests[num_before:]
    served = sum(request.status == "done" for request in burst)
    assert served >= 0.9 * len(burst)


def test_one_key_that_floods_costs_another_nothing() -> None:
    world = World(MAX_QUEUE_S)
    world.offer(5 * peak()[1], FALL_S, "heavy")
    world.offer(1.0, FALL_S, "light", max_tokens=20)
    world.run(FALL_S + 1)
    light = [request for request in world.requests if request.tenant == "light"]
    assert all(request.status == "done" for request in light)
    assert max(request.ttft_s for request in light) < 0.2
    heavy = [request for request in world.requests if request.tenant == "heavy"]
    assert any(request.status == "refused" for request in heavy)
    assert not world.admission.is_overloaded()


def test_a_stall_of_the_engine_is_over_when_it_is_over() -> None:
    """Twenty seconds in one step; afterwards those who must wait for a row are let in as before."""
    world = World(MAX_QUEUE_S / SURE)
    world.offer(1.1 * peak()[1], 10.0)
    world.run(10)
    world.device.slowness = lambda: 1000.0
    world.run(world.now_s + 0.001)
    world.device.slowness = lambda: 1.0
    world.run(world.now_s + 10)
    begin_s = world.now_s
    assert begin_s > 25
    for _ in range(NUM_ROWS + 10):
        world.send()
    world.run(begin_s + 20)
    after = [request for request in world.requests if request.arrived_s >= begin_s]
    assert [request.status for request in after] == ["done"] * (NUM_ROWS + 10)
