"""schemathesis over the OpenAPI document: thousands of requests, right and wrong, and no reply that it lacks.

A 5xx fails even where it is documented. That a request which fits the schema may still be refused does not:
no schema can say that two fields exclude each other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.clients.conftest import KEY
from tests.clients.programs import run_client
from tests.serving import Server

_CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
_MAX_EXAMPLES = 200  # random requests of each operation, beside those that cover the schema
_FEW_EXAMPLES = 40
_COMPLETIONS = "POST /v1/completions"


def run_schemathesis(
    folder: Path,
    server: Server,
    *arguments: str,
    max_examples: int = _FEW_EXAMPLES,
    without: str = "",
) -> dict[str, Any]:
    """Its report; a failed check ends the test with all that it printed. `without`: a header."""
    schema, report = folder / "openapi.json", folder / "report.json"
    schema.write_text(json.dumps(_document(server, without)))
    run_client(
        folder,
        "schemathesis",
        *("run", str(schema), "--url", server.address, *_CHECKS, *arguments),
        *("--max-examples", str(max_examples), "--generation-deterministic"),
        *("--report", "json", "--report-json-path", str(report)),
        *("--continue-on-failure", "--request-timeout", "30"),
        *("--output-sanitize", "false", "--no-color"),
    )
    found: dict[str, Any] = json.loads(report.read_text())
    operations = [
        method for path in json.loads(schema.read_text())["paths"].values() for method in path
    ]
    assert found["operations"]["tested"] == len(operations)
    return found


def _document(server: Server, without: str) -> dict[str, Any]:
    document: dict[str, Any] = server.client.get("/openapi.json").raise_for_status().json()
    for path in document["paths"].values():
        for operation in path.values():
            given = operation.get("parameters", [])
            operation["parameters"] = [each for each in given if each["name"] != without]
    return document


def num_accepted(report: dict[str, Any], operation: str) -> int:
    phases = report["valid_rates"].get(operation, {})
    return sum(phase["accepted"] for phase in phases.values())


def test_no_5xx_and_no_undocumented_reply(server: Server, folder: Path) -> None:
    # with it nearly all bodies come with a key of another one, which is a 409 whatever they hold
    report = run_schemathesis(folder, server, max_examples=_MAX_EXAMPLES, without="Idempotency-Key")
    assert num_accepted(report, _COMPLETIONS) > 50
    assert report["test_cases"]["generated"] > 1000


def test_the_same_with_a_key(keyed_server: Server, folder: Path) -> None:
    """Each operation is also tried without the key, which it must not forgive."""
    report = run_schemathesis(folder, keyed_server, "--header", f"Authorization: Bearer {KEY}")
    assert num_accepted(report, _COMPLETIONS) > 10


def test_the_same_without_the_key_that_is_needed(keyed_server: Server, folder: Path) -> None:
    report = run_schemathesis(folder, keyed_server)
    assert num_accepted(report, _COMPLETIONS) == 0
    assert num_accepted(report, "GET /health") > 0
