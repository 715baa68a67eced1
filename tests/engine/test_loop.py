"""The loop over a real Unix socket; each turn is driven by hand, so nothing races."""

from __future__ import annotations

import os

import msgspec
import pytest

from server.engine.loop import HEARTBEAT_S, MASK_WAIT_S
from server.ipc.frames import Abort, StepOutput, Submit
from server.ipc.server import EngineServer
from server.ipc.wire import with_header
from server.sequence import SequenceRequest
from tests.engine.loop_world import World, failures, outputs, tokens
from tests.engine.rig import request, solo


def test_what_is_submitted_is_streamed_one_frame_a_step(world: World) -> None:
    client = world.connect()
    client.send(Submit([request(0), request(1, [4, 5])]))
    world.turns(8)
    frames = client.receive()
    assert [len(f.outputs) for f in frames if isinstance(f, StepOutput)] == [2] * 8
    assert tokens(frames, 0) == solo(request(0)).token_ids
    assert tokens(frames, 1) == solo(request(1, [4, 5])).token_ids
    assert outputs(frames)[-1].finish_reason == "length"
    assert not world.rig.engine.has_work


def test_each_api_gets_its_own_outputs(world: World) -> None:
    a, b = world.connect(), world.connect()
    a.send(Submit([request(7)]))
    b.send(Submit([request(7, [4, 5])]))
    world.turns(9)
    assert tokens(a.receive(), 7) == solo(request(7)).token_ids
    assert tokens(b.receive(), 7) == solo(request(7, [4, 5])).token_ids


def test_an_abort_is_obeyed_before_the_next_step(world: World) -> None:
    client = world.connect()
    client.send(Submit([request(0, max_tokens=50)]))
    world.turns(3)
    client.send(Abort([0, 99]))
    world.turns(1)
    assert not world.rig.engine.has_work
    assert len(tokens(client.receive(), 0)) == 3


def test_a_lost_connection_takes_its_sequences_along(world: World) -> None:
    a, b = world.connect(), world.connect()
    a.send(Submit([request(0, max_tokens=50), request(1, max_tokens=50)]))
    b.send(Submit([request(0)]))
    world.turns(3)
    a.sock.close()
    world.turns(2)
    assert set(world.rig.scheduler.sequences) == {(1, 0)}
    world.turns(6)
    assert tokens(b.receive(), 0) == solo(request(0)).token_ids
    assert world.rig.blocks.num_used == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        with_header(b"\xc1"),
        with_header(msgspec.msgpack.encode(["submit", [1, 2]])),
        with_header(msgspec.msgpack.encode(["surprise"])),
    ],
    ids=["length", "msgpack", "schema", "tag"],
)
def test_a_bad_frame_ends_its_connection_and_nothing_else(world: World, data: bytes) -> None:
    bad, good = world.connect(), world.connect()
    good.send(Submit([request(0)]))
    bad.sock.sendall(data)
    world.turns(9)
    frames = bad.receive()
    while frames:
        frames = bad.receive()
    assert tokens(good.receive(), 0) == solo(request(0)).token_ids
    assert not world.rig.engine.has_work
    assert world.server.owners == (1,)


def test_silence_is_never_longer_than_a_heartbeat(world: World) -> None:
    busy, idle = world.connect(), world.connect()
    world.now_s = 10.0
    world.turns(1)
    busy.receive(), idle.receive()
    busy.send(Submit([request(0, max_tokens=20)]))
    for _ in range(4):
        world.now_s += HEARTBEAT_S / 2
        world.turns(1)
    assert len(busy.receive()) == 4
    beats = idle.receive()
    assert [f.outputs for f in beats if isinstance(f, StepOutput)] == [[], []]
    assert isinstance(beats[0], StepOutput)
    assert beats[0].stats.num_running == 1


def test_one_step_ahead_streams_the_same(ahead: World) -> None:
    client = ahead.connect()
    client.send(Submit([request(0), request(1, [4, 5])]))
    ahead.turns(1)
    assert len(ahead.rig.device.in_flight) == 1
    ahead.turns(8)
    frames = client.receive()
    assert [len(f.outputs) for f in frames if isinstance(f, StepOutput)] == [2] * 8
    assert tokens(frames, 0) == solo(request(0)).token_ids
    assert tokens(frames, 1) == solo(request(1, [4, 5])).token_ids
    assert not ahead.rig.engine.has_work


def test_the_loop_does_not_wait_while_a_step_is_in_flight(
    ahead: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody is left for whom it could be."""
    client = ahead.connect()
    client.send(Submit([request(0, max_tokens=50)]))
    ahead.turns(3)
    client.send(Abort([0]))
    timeouts_s: list[float] = []
    poll = ahead.server.poll
    monkeypatch.setattr(ahead.server, "poll", lambda s: timeouts_s.append(s) or poll(0.0))
    ahead.turns(3)
    assert timeouts_s == [0.0, HEARTBEAT_S, HEARTBEAT_S]
    assert not ahead.rig.device.in_flight
    assert len(tokens(client.receive(), 0)) == 2


def test_run_ends_when_told(world: World) -> None:
    client = world.connect()
    client.send(Submit([request(0)]))
    answers = iter([False] * 3 + [True])
    world.loop.run(lambda: next(answers))
    assert len(tokens(client.receive(), 0)) == 3


def test_a_request_survives_the_wire(world: World) -> None:
    client = world.connect()
    wanted = request(
        3, choice=2, salt="x", stop=(6,), logprobs=0, prompt_logprobs=0, seed=2**64 - 1
    )
    client.send(Submit([wanted]))
    world.turns(1)
    ((_, seq),) = world.rig.scheduler.sequences.items()
    assert (seq.choice, seq.cache_salt, seq.params) == (2, "x", wanted.params)
    assert isinstance(wanted, SequenceRequest)
    world.turns(8)
    texts = outputs(client.receive())
    first = texts[0].first
    assert first is not None
    assert solo(wanted).first == first
    assert [o.logprobs[0] for o in texts if o.logprobs] == solo(wanted).logprobs


def test_a_mask_wakes_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every sequence waits for one, the loop sleeps on its descriptor."""
    client = world.connect()
    reader, writer = os.pipe()
    world.server.watch(reader)
    world.rig.grammars._delay = lambda: 1
    client.send(Submit([request(0, max_tokens=2, grammar="g")]))
    world.turns(1)
    timeouts_s: list[float] = []

    def note(timeout_s: float) -> object:
        timeouts_s.append(timeout_s)
        os.write(writer, b"!")
        events = EngineServer.poll(world.server, 60.0)  # it returns at once, with nothing of an api
        os.read(reader, 1)
        return events

    monkeypatch.setattr(world.server, "poll", note)
    world.turns(3)
    assert timeouts_s == [MASK_WAIT_S] * 3
    assert len(tokens(client.receive(), 0)) == 2
    os.close(writer)
    os.close(reader)


def test_a_failure_reaches_its_api(world: World) -> None:
    a, b = world.connect(), world.connect()
    a.send(Submit([request(0, grammar="grammar_invalid 0")]))
    b.send(Submit([request(0, max_tokens=3)]))
    world.turns(4)
    assert failures(a.receive()) == [(0, "grammar_invalid")]
    assert len(tokens(b.receive(), 0)) == 3


def test_prompt_logprobs_too_large_for_a_frame_come_in_several(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.ipc.server.MAX_FRAME_BYTES", 150)
    client = world.connect()
    wanted = request(0, [1, 2, 3, 4, 5, 6, 7] * 4, max_tokens=2, prompt_logprobs=0)
    client.send(Submit([wanted]))
    world.turns(3)
    frames = [frame for frame in client.receive() if isinstance(frame, StepOutput)]
    chunks = [chunk for frame in frames for chunk in frame.prompt_logprobs]
    assert len(chunks) > 2
    assert chunks[0].start == 1
    assert b"".join(chunk.logprobs for chunk in chunks) == solo(wanted).prompt_logprobs
    first = next(i for i, frame in enumerate(frames) if frame.outputs)
    assert not any(frame.prompt_logprobs for frame in frames[first:])
    assert len(tokens(frames, 0)) == 2  # type: ignore[arg-type]
