"""The table of what a process may hold."""

from __future__ import annotations

from server.budget import Part, shown, table, total_bytes

PARTS = [Part("kv_cache", 3 << 30, "12 blocks"), Part("rows", 512 << 10)]


def test_a_line_for_each_and_their_sum() -> None:
    assert table(iter(PARTS)) == [
        "kv cache   3.00 GiB   12 blocks",
        "rows        0.5 MiB",
        "in all     3.00 GiB",
    ]
    assert total_bytes(PARTS) == (3 << 30) + (512 << 10)


def test_mib_below_a_gib() -> None:
    assert shown((1 << 30) - 1) == "1024.0 MiB"
    assert shown(1 << 30) == "1.00 GiB"
