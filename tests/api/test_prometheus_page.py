"""The page reader refuses what promtool refuses."""

from __future__ import annotations

import pytest

from tests.api.prometheus_page import read_page

_L = 'engine="0",model_name="m"'
GOOD = f"""\
# HELP vllm:num_waiting Waiting.
# TYPE vllm:num_waiting gauge
vllm:num_waiting{{{_L}}} 1.0
# HELP vllm:prompt_tokens_total Tokens.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{{_L}}} 3.0
# HELP vllm:wait_seconds Waits.
# TYPE vllm:wait_seconds histogram
vllm:wait_seconds_bucket{{{_L},le="0.5"}} 1.0
vllm:wait_seconds_bucket{{{_L},le="+Inf"}} 2.0
vllm:wait_seconds_count{{{_L}}} 2.0
vllm:wait_seconds_sum{{{_L}}} 1.5
"""


def test_a_good_page_is_read() -> None:
    page = read_page(GOOD)
    assert page["vllm:prompt_tokens_total"].total() == 3
    assert page["vllm:wait_seconds"].total("_bucket", le="0.5") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# HELP vllm:num_waiting Waiting.\n", ""),
        ("# TYPE vllm:num_waiting gauge\n", ""),
        ("# TYPE vllm:num_waiting gauge", "# TYPE vllm:num_waiting untyped"),
        (" Waiting.", " "),
        ("vllm:num_waiting", "other:num_waiting"),
        ("vllm:num_waiting", "vllm:num_waiting_total"),
        ("vllm:num_waiting", "vllm:num_waiting_gauge"),
        ("vllm:num_waiting", "vllm:waiting_ms"),
        ("vllm:num_waiting", "vllm:waiting_milliseconds"),
        ("vllm:num_waiting", "vllm:waitingNum"),
        ("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        ("total{engine", 'total{le="1",engine'),
        (f"total{{{_L}}} 3.0\n", f"total{{{_L}}} 3.0\nvllm:prompt_tokens_total{{{_L}}} 4.0\n"),
        (f"total{{{_L}}} 3.0", 'total{engine="0"} 3.0'),
        (f"total{{{_L}}} 3.0", f"total{{{_L}}} -3.0"),
        (f"total{{{_L}}} 3.0", f"total{{{_L}}} NaN"),
        (f"total{{{_L}}} 3.0", f"total{{{_L}}} 3.0 12345"),
        ('le="+Inf"} 2.0', 'le="+Inf"} 3.0'),
        ('le="0.5"} 1.0', 'le="0.5"} 4.0'),
        ('le="0.5"', 'le="+Inf"'),
        (f'vllm:wait_seconds_bucket{{{_L},le="+Inf"}} 2.0\n', ""),
        (f"vllm:wait_seconds_sum{{{_L}}} 1.5\n", ""),
        ("# HELP vllm:wait", GOOD.split("# HELP vllm:prompt")[0] + "# HELP vllm:wait"),
        ("1.5\n", "1.5"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(AssertionError):
        read_page(GOOD.replace(old, new))
