"""Where the peers are installed, and what could not be: set_up.py makes it, everything else only reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers"
LLAMA_CPP = PEERS / "llama.cpp"  # the source tree
LLAMA_BIN = LLAMA_CPP / "build" / "bin"  # the server and the shared libraries
STATE = PEERS / "peers.json"


@dataclass(frozen=True)
class Peers:
    python: Path
    versions: dict[str, str] = field(default_factory=dict)  # of what is there
    missing: dict[str, str] = field(default_factory=dict)  # peer: why it is not


def read_peers(state: Path = STATE) -> Peers:
    """An environment that was never made has no peer."""
    python = state.parent / "bin" / "python"
    try:
        document = json.loads(state.read_text())
    except (OSError, ValueError):
        reason = "not set up: run `make compare`"
        return Peers(
            python, {}, dict.fromkeys(("transformers", "ctranslate2", "llama.cpp"), reason)
        )
    return Peers(python, document["versions"], document["missing"])
