"""guidellm: a short benchmark over /v1/completions ends well, and counts what the server counts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients.conftest import MODEL_DIR
from tests.clients.programs import run_client
from tests.serving import Server

_NUM_REQUESTS, _PROMPT_TOKENS, _OUTPUT_TOKENS = 200, 48, 32
_COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def test_a_benchmark_ends_well_and_counts_as_we_do(server: Server, folder: Path) -> None:
    before = [server.metric(name) for name in _COUNTERS]
    report = folder / "report.json"
    run_client(
        folder,
        "guidellm",
        "run",
        *("--backend", f"kind=openai_http,target={server.address},request_format=/v1/completions"),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", f"kind=max_requests,count={_NUM_REQUESTS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={MODEL_DIR}"),
        "--data",
        f"kind=synthetic_text,prompt_tokens={_PROMPT_TOKENS},output_tokens={_OUTPUT_TOKENS}",
        *("--output", f"kind=json,path={report}"),
        "--disable-console-interactive",
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    totals = {"successful": _NUM_REQUESTS, "errored": 0, "incomplete": 0, "total": _NUM_REQUESTS}
    assert metrics["request_totals"] == totals

    counted = [
        metrics[name]["successful"]["total_sum"]
        for name in ("prompt_token_count", "output_token_count")
    ]
    after = [server.metric(name) for name in _COUNTERS]
    assert [b - a for a, b in zip(before, after, strict=True)] == counted
    assert counted == [_NUM_REQUESTS * _PROMPT_TOKENS, _NUM_REQUESTS * _OUTPUT_TOKENS]
