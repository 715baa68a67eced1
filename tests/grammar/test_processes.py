"""Grammar processes that die or hang. The sequence they were at fails; all others go on with the same masks,
since the next process replays their ids."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from server.grammar import child as child_module
from server.grammar import client as client_module
from server.grammar.board import COMPILES, MASKS, Board
from tests.grammar.rig import PERSON, TIMEOUT_S, Rig, grammar, ids_of

TEXT = grammar("regex", "[a-z ]{3000}")


def begin(rig: Rig, slot: int, key: int) -> None:
    """As the masker does in front of a piece of work; it must be stopped, else it goes on by itself."""
    rig.client._children["masker"]._board.begin(slot, key)


def steps(rig: Rig, keys: list[int], num_steps: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    for _ in range(num_steps):
        rig.wait(*keys)
        rig.advance({key: rng.choice(ids_of(rig.mask(key))) for key in keys})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_masker_costs_nothing_but_time(rig: Rig, how: signal.Signals) -> None:
    keys = [0, 1, 2]
    for key in keys:
        rig.open(key, TEXT)
    steps(rig, keys, 5)
    rig.wait(*keys)  # so it is at none of them
    pid = rig.pid("masker")
    os.kill(pid, signal.SIGSTOP)
    rig.advance({key: ids_of(rig.mask(key))[0] for key in keys})
    os.kill(pid, how)
    os.kill(pid, signal.SIGCONT)
    steps(rig, keys, 5, seed=1)
    rig.wait(*keys)
    assert rig.pid("masker") != pid
    for key in keys:
        rig.open(10 + key, TEXT, rig.ids[key])
        assert rig.mask(10 + key) == rig.mask(key)


def test_a_mask_that_the_engine_has_is_not_given_again(rig: Rig) -> None:
    """It is not waited for: a token is being drawn under it, and a mask now would be of ids of before."""
    rig.open(0, TEXT)
    first = rig.mask(0)
    pid = rig.pid("masker")
    os.kill(pid, signal.SIGKILL)
    rig.open(1, TEXT)
    rig.wait(1)  # by the new process, which replayed key 0 before: a second reply would be an error
    assert rig.pid("masker") != pid
    rig.advance({0: ids_of(first)[0]})
    rig.mask(0)


@pytest.mark.parametrize(
    ("slot", "siblings_fail"), [(MASKS, False), (COMPILES, True)], ids=["mask", "compile"]
)
def test_a_crash_is_the_fault_of_what_was_worked_on(
    rig: Rig, slot: int, siblings_fail: bool
) -> None:
    other = grammar("json_schema", PERSON)
    for key, what in enumerate((TEXT, TEXT, other)):
        rig.open(key, what)
    rig.wait(0, 1, 2)
    os.kill(rig.pid("masker"), signal.SIGSTOP)
    rig.advance({key: ids_of(rig.mask(key))[0] for key in range(3)})
    begin(rig, slot, 0)
    os.kill(rig.pid("masker"), signal.SIGKILL)
    assert rig.failure(0) == "grammar_too_complex"
    rig.wait(1, 2)
    assert isinstance(rig.replies[1], str) == siblings_fail
    assert isinstance(rig.replies[2], bytes)


def test_a_mask_that_takes_too_long_ends_the_process(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in range(2):
        rig.open(key, TEXT)
    rig.wait(0, 1)
    pid = rig.pid("masker")
    os.kill(pid, signal.SIGSTOP)
    rig.advance({0: ids_of(rig.mask(0))[0]})
    begin(rig, MASKS, 0)
    monkeypatch.setattr(client_module, "MAX_MASK_S", 0.0)
    assert rig.client.replies() == [], "all of us may have been stopped: it is given another chance"
    assert rig.client.replies() == [(0, "grammar_too_slow")]
    monkeypatch.undo()
    assert rig.pid("masker") != pid
    rig.advance({1: ids_of(rig.mask(1))[0]})
    rig.mask(1)


def test_a_stopped_process_that_owes_an_answer_is_replaced(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was at nothing when it was stopped. One that owes none may sleep as long as it likes."""
    rig.open(0, TEXT)
    rig.mask(0)
    pids = {role: rig.pid(role) for role in ("masker", "checker")}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(client_module, "MAX_SILENCE_S", 0.0)
        assert rig.client.replies() == []
        assert {role: rig.pid(role) for role in pids} == pids
        rig.advance({0: ids_of(rig.mask(0))[0]})
        rig.open(1, grammar("regex", "b+"))
        rig.client.replies()
        assert not {rig.pid("masker"), rig.pid("checker")} & set(pids.values())
    rig.wait(0, 1)
    assert all(isinstance(reply, bytes) for reply in rig.replies.values())


def test_no_room_for_a_process_fails_those_who_need_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(child_module.sys, "executable", "/nowhere/python")
        rig.open(0, TEXT)
        assert rig.failure(0) == "internal"
        rig.client.close(0)
    rig.open(1, TEXT)
    rig.mask(1)


def test_a_checker_killed_from_outside_says_nothing_about_its_grammar(rig: Rig) -> None:
    rig.open(0, TEXT)
    rig.mask(0)
    os.kill(rig.pid("checker"), signal.SIGSTOP)
    other = grammar("regex", "b+")
    rig.open(1, other)
    rig.client._children["checker"]._board.begin(0, rig.client._check_ids[other])
    os.kill(rig.pid("checker"), signal.SIGKILL)
    assert rig.failure(1) == "grammar_too_complex"
    rig.open(2, other)
    rig.mask(2)


def test_a_check_ends_well_though_its_sequence_was_refused_meanwhile(rig: Rig) -> None:
    """As a sibling of one that killed the masker: of a grammar too large for its verdict to be kept."""
    rig.open(0, TEXT)
    rig.mask(0)
    rig.client._verdicts._remove(TEXT)
    os.kill(rig.pid("checker"), signal.SIGSTOP)
    rig.open(1, TEXT)
    os.kill(rig.pid("masker"), signal.SIGSTOP)
    rig.advance({0: ids_of(rig.mask(0))[0]})
    begin(rig, COMPILES, 0)
    os.kill(rig.pid("masker"), signal.SIGKILL)
    assert (rig.failure(0), rig.failure(1)) == ("grammar_too_complex", "grammar_too_complex")
    os.kill(rig.pid("checker"), signal.SIGCONT)
    rig.open(2, TEXT)
    rig.mask(2)


_FAULTY = """
import sys, time
from unittest import mock
from server.grammar import masker
from server.grammar.board import Board
from server.grammar.compiler import Compiler
from server.grammar.frames import Open
from server.grammar.line import Line
board, compiler = Board(int(sys.argv[1])), mock.Mock(spec=Compiler)
compiler.compile.return_value.deep_copy.return_value.is_error.return_value = False
compiler.mask.side_effect = MemoryError("planted")
said = lambda error: print(repr(error), file=sys.stderr, flush=True)
masker.Masker(compiler, mock.Mock(spec=Line), board, said).apply(Open(5, "source", []))
time.sleep(60)
"""


def test_a_fault_while_compiling_ends_the_process_and_stays_on_the_board() -> None:
    board = Board.create()
    argv = [sys.executable, "-c", _FAULTY, str(board.fd)]
    run = subprocess.run(argv, pass_fds=[board.fd], stderr=subprocess.PIPE, timeout=TIMEOUT_S)
    assert (run.returncode, run.stderr) == (1, b"MemoryError('planted')\n")
    assert [(work.slot, work.key) for work in board.read()] == [(COMPILES, 5)]
    board.close()


def test_a_killed_checker_is_started_again(rig: Rig) -> None:
    rig.open(0, TEXT)
    rig.mask(0)
    os.kill(rig.pid("checker"), signal.SIGKILL)
    for key, pattern in enumerate(("a+", "b+", "("), start=1):
        rig.open(key, grammar("regex", pattern))
    assert isinstance(rig.mask(1), bytes)
    assert isinstance(rig.mask(2), bytes)
    assert rig.failure(3) == "grammar_invalid"


_HUNGRY = """
from server.grammar.helper import limit_memory
limit_memory(64 << 20)
kept = [bytearray(16 << 20)]
try:
    kept.append(bytearray(64 << 20))
except MemoryError:
    print("refused")
"""


def test_memory_is_bounded(rig: Rig) -> None:
    rig.open(0, TEXT)
    rig.mask(0)
    for role in ("masker", "checker"):
        process = psutil.Process(rig.pid(role))
        freed = 64 << 20  # what loading needed for a moment
        limit = process.rlimit(psutil.RLIMIT_AS)[0]
        assert 1 << 30 < limit < (1 << 30) + process.memory_info().vms + freed
    run = subprocess.run([sys.executable, "-c", _HUNGRY], capture_output=True, check=True)
    assert run.stdout == b"refused\n"


def test_processes_that_cannot_start_are_given_up(tmp_path: Path) -> None:
    rig = Rig(model=tmp_path)  # where no tokenizer is
    try:
        rig.open(0, TEXT)
        assert rig.failure(0) == "internal"
        rig.open(1, TEXT)
        assert rig.failure(1) == "internal"
    finally:
        rig.close()


def test_they_never_load_torch_or_numba(rig: Rig) -> None:
    rig.open(0, TEXT)
    rig.mask(0)
    for role in ("masker", "checker"):
        maps = Path(f"/proc/{rig.pid(role)}/maps").read_text()
        assert "llguidance" in maps
        assert "torch" not in maps and "numba" not in maps and "llvmlite" not in maps


def test_no_process_before_the_first_grammar(rig: Rig) -> None:
    assert rig.client.replies() == []
    rig.client.close(7)
    assert rig.client._children == {}


_ENGINE = """
import sys, time
from tests.grammar.rig import Rig, grammar
rig = Rig()
rig.open(0, grammar("regex", "a+"))
rig.mask(0)
print(rig.pid("masker"), rig.pid("checker"), flush=True)
time.sleep(600)
"""


def test_they_die_with_the_engine() -> None:
    engine = subprocess.Popen([sys.executable, "-c", _ENGINE], stdout=subprocess.PIPE)
    assert engine.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in engine.stdout.readline().split()]
    titles = [process.cmdline()[0] for process in processes]
    assert titles == ["continuo: grammar", "continuo: grammar check"]
    engine.kill()
    engine.wait()
    engine.stdout.close()
    deadline_s = time.monotonic() + TIMEOUT_S
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_a_board_tells_what_is_worked_on() -> None:
    board = Board.create()
    assert board.read() == []
    board.begin(COMPILES, 7)
    (work,) = board.read()
    assert (work.slot, work.key) == (COMPILES, 7)
    assert 0 <= time.monotonic() - work.since_s < TIMEOUT_S
    board.clear(COMPILES)
    assert board.read() == []
    board.close()


_WRITER = """
import sys
from server.grammar.board import Board
board = Board(int(sys.argv[1]))
while True:
    board.begin(0, 1)
    board.begin(0, 2**40)
    board.clear(0)
"""


def test_a_board_is_never_read_half_written() -> None:
    """Bytes of two time stamps mixed would be seconds old: a reason to kill a process that is not."""
    started_s, board = time.monotonic(), Board.create()
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(board.fd)], pass_fds=[board.fd])
    try:
        num_read = 0
        while num_read < 100_000:
            for work in board.read():
                num_read += 1
                assert work.key in (1, 2**40)
                assert work.since_s >= started_s
    finally:
        writer.kill()
        writer.wait()
        board.close()
