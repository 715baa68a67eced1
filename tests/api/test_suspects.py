"""Who is blamed for an engine's death, how suspects are tried, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.api.sequence_book import MAX_DEATHS
from tests.api.book_rig import BookRig


def suspected(num: int = 3) -> BookRig:
    """So many sequences were in two deaths; the first of them is being tried."""
    rig = BookRig()
    for _ in range(num):
        rig.add()
    rig.add()  # this one was in neither
    rig.frames()
    rig.die(*range(num))
    assert rig.due() == ["submit " + " ".join(map(str, range(num + 1)))]
    rig.die(*range(num))
    assert rig.due() == ["submit 0"]
    return rig


# What happens in the trial of 0, who is tried next, and whether 0 has failed.
VERDICTS: list[tuple[str, Callable[[BookRig], object], list[str], bool]] = [
    ("something new", lambda rig: rig.output(0, 0, 5), ["abort 0", "submit 1"], False),
    ("its end", lambda rig: rig.output(0, 0, 5, finish="stop"), ["submit 1"], False),
    ("another fault of it", lambda rig: rig.fail(0), ["submit 1"], True),
    ("its abort", lambda rig: rig.book.remove([0]), ["abort 0", "submit 1"], False),
    ("others' outputs", lambda rig: rig.output(3, 0, 5), [], False),
    ("a request more", lambda rig: rig.add(), [], False),
    ("dies alone", lambda rig: rig.die(0), ["submit 1"], True),
    ("dies with another api's", lambda rig: rig.die(0, others=1), ["submit 0"], False),
    ("dies with another of ours", lambda rig: rig.die(0, 1), ["submit 0"], False),
    ("dies without it", lambda rig: rig.die(), ["submit 0"], False),
    ("killed from outside", lambda rig: rig.die(0, is_own=False), ["submit 0"], False),
    ("connection lost", lambda rig: rig.reconnect(), ["submit 0"], False),
]


@pytest.mark.parametrize(("what", "happens", "due", "has_failed"), VERDICTS)
def test_the_verdicts(
    what: str, happens: Callable[[BookRig], object], due: list[str], has_failed: bool
) -> None:
    rig = suspected()
    generation = rig.book.open[0].generation
    happens(rig)
    assert rig.due() == due, what
    assert (generation.error is not None) == has_failed
    assert all(i in rig.book.open for i in range(1, 4))


def test_when_all_are_through_they_go_on_together() -> None:
    rig = suspected()
    rig.output(0, 0, 5)
    assert rig.due() == ["abort 0", "submit 1"]
    rig.output(1, 0, 5)
    assert rig.due() == ["abort 1", "submit 2"]
    rig.output(2, 0, 5)  # it is the last one and may stay
    assert rig.due() == ["submit 1 0 3"]
    rig.output(2, 1, 6)
    assert all(seq.num_deaths == 0 for seq in rig.book.open.values())
    assert rig.book.open[2].emitted_ids == [5, 6]


def test_late_outputs_of_one_that_passed_change_nothing() -> None:
    rig = suspected(2)
    rig.output(0, 0, 5)
    assert rig.due() == ["abort 0", "submit 1"]
    rig.output(0, 1, 6)  # of a step that was running when the abort went
    assert rig.due() == []
    rig.output(1, 0, 5)
    (again, _) = rig.submitted()
    assert (again.seq_id, again.emitted_ids) == (0, [5])


def test_a_death_is_counted_once_and_only_for_those_of_its_steps() -> None:
    rig = BookRig()
    for _ in range(3):
        rig.add()
    rig.die(1)
    for _ in range(3):
        rig.reconnect()  # each Welcome tells of it again
    assert [seq.num_deaths for seq in rig.book.open.values()] == [0, 1, 0]
    assert rig.book.deaths == {"x": 1}
    rig.frames()
    rig.die(0, 1, is_own=False)
    assert [seq.num_deaths for seq in rig.book.open.values()] == [0, 1, 0]
    rig.die(others=3)  # which have the same numbers there
    assert [seq.num_deaths for seq in rig.book.open.values()] == [0, 1, 0]
    assert rig.book.deaths == {"x": 3}


def test_all_of_a_lifes_connections_are_ours() -> None:
    rig = BookRig()
    rig.add()
    rig.reconnect()
    rig.owner = 0  # of the connection before
    rig.die(0)
    assert rig.book.open[0].num_deaths == 1


def test_something_new_between_two_deaths_acquits() -> None:
    rig = BookRig()
    rig.add(emitted=2)
    for num_tokens in range(2, 6):
        rig.die(0)
        rig.frames()
        rig.output(0, num_tokens - 1, num_tokens - 1)  # what had been sent is nothing new
        assert rig.book.open[0].num_deaths == 1
        rig.output(0, num_tokens, num_tokens)
        assert rig.book.open[0].num_deaths == 0


def test_its_whole_request_fails_at_once_and_its_like_too() -> None:
    rig = BookRig()
    poison = rig.add(n=3, prompt=[6])
    like = rig.add(prompt=[6], seed=8)
    other = rig.add()
    rig.frames()
    rig.die(*range(5))
    rig.frames()
    rig.die(*range(5))
    assert rig.due() == ["submit 0"]
    rig.die(0)
    assert rig.due() == ["submit 4"]
    assert (poison.failed, like.failed, other.failed) == (
        {0: "engine_crash"},
        {0: "engine_crash"},
        {},
    )
    assert list(rig.book.open) == [4]
    assert rig.book.num_given_up == 2


def test_its_like_need_not_have_been_in_any_death() -> None:
    """They wait behind it: each batch of them would kill as often again, and the server would give up."""
    rig = BookRig()
    rig.add(prompt=[6])
    like = [rig.add(prompt=[6], seed=seed, n=2) for seed in range(2, 4)]
    other = rig.add()
    for _ in range(3):
        rig.frames()
        rig.die(0)
    assert [each.failed for each in like] == [{0: "engine_crash"}] * 2
    assert list(rig.book.open) == [other.first_seq_id]


def test_who_is_never_alone_is_given_up_before_the_server_ends_but_not_in_quarantine() -> None:
    rig = BookRig()
    generation = rig.add()
    request = rig.book.open[0].request
    for num_deaths in range(1, MAX_DEATHS + 1):
        rig.frames()
        assert 0 in rig.book.open
        rig.die(0, others=1)
        assert bool(generation.failed) == (num_deaths == MAX_DEATHS)
    assert not rig.quarantine.holds(request, 0.0)
