from __future__ import annotations

from typing import Any, cast

from server.grammar.matcher_cache import MatcherCache, resident_bytes
from server.grammar.verdicts import Passed, Verdicts
from server.sequence import Grammar


def matcher(name: str) -> Any:
    return cast(Any, name)


def test_verdicts_stay_within_their_bytes_and_keep_what_is_used() -> None:
    verdicts = Verdicts(max_bytes=10_000)
    first = Grammar("regex", "first")
    verdicts.put(first, "grammar_too_slow")
    for i in range(100):
        verdicts.put(Grammar("regex", f"{i} " + "x" * 200), Passed("y" * 100))
        assert verdicts.get(first) == "grammar_too_slow"
        assert verdicts.num_bytes <= 10_000
    assert 3 < len(verdicts) < 10
    assert verdicts.get(Grammar("regex", "0 " + "x" * 200)) is None


def test_a_verdict_put_twice_counts_once_and_one_too_large_is_forgotten() -> None:
    verdicts = Verdicts(max_bytes=2_000)
    for _ in range(2):
        verdicts.put(Grammar("regex", "a"), Passed("b"))
    assert (len(verdicts), verdicts.num_bytes) == (1, 512 + 8)
    verdicts.put(Grammar("regex", "a" * 9_000), Passed("b"))
    assert (len(verdicts), verdicts.num_bytes) == (0, 0)


def test_matchers_go_when_the_process_has_grown_too_large() -> None:
    resident, entries = 1_000, []
    cache = MatcherCache(100, lambda: resident + 30 * sum(map(len, entries)))
    entries.append(cache)
    for name in "abc":
        cache.put(name, matcher(name))
    assert cache.get("a") == matcher("a")
    cache.put("d", matcher("d"))
    assert [cache.get(name) is not None for name in "abcd"] == [True, False, True, True]
    resident = 5_000
    cache.put("e", matcher("e"))
    assert len(cache) == 0


def test_many_matchers_go_in_few_rounds() -> None:
    num_asked, resident = 0, 1_000

    def ask() -> int:
        nonlocal num_asked
        num_asked += 1
        return resident

    cache = MatcherCache(100, ask)
    for i in range(1_000):
        cache.put(f"{i}", matcher("m"))
    num_asked, resident = 0, 5_000
    cache.put("last", matcher("m"))
    assert len(cache) == 0
    assert num_asked < 100


def test_resident_memory_is_read() -> None:
    before = resident_bytes()
    block = bytearray(b"\1") * (64 << 20)
    assert resident_bytes() - before > len(block) // 2
