"""The process that loads hostile directories: imports everything once, then forks for each of them.

A line of JSON in, a line of JSON out: what the load came to, what it took, and what it touched.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from server.assembly import Assembled, assemble
from server.config import EngineConfig
from server.errors import ConfigError
from server.model_files import ModelFiles
from server.sequence import SamplingParams, SequenceRequest
from server.tokenizer import load_tokenizer

# What runs code, or might: https://docs.python.org/3/library/audit_events.html
_DANGERS = (
    "compile", "ctypes.dlopen", "exec", "import", "marshal.loads", "os.exec", "os.fork", "os.posix_spawn",
    "os.system", "pickle.find_class", "subprocess.Popen",
)  # fmt: skip


def load(directory: str, manifest: str) -> Assembled:
    config = EngineConfig(
        model=directory, model_manifest=manifest, device="cpu", max_model_len=64, max_num_seqs=2
    )
    return assemble(config, load_tokenizer(ModelFiles(directory, manifest)))


def some_tokens(assembled: Assembled) -> list[int]:
    """A completion long enough to read every weight, and many rows of the embedding."""
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=3)
    engine, ids = assembled.engine, []
    engine.submit(SequenceRequest(seq_id=0, prompt_ids=[5, 6, 7], choice=0, params=params))
    while engine.has_work:
        for _, output in engine.step().outputs:
            ids += output.token_ids
    return ids


def num_maps_of(directory: str) -> int:
    """Maps and open files of this process that lead into `directory`."""
    maps = sum(
        f" {directory}/" in line for line in Path("/proc/self/maps").read_text().splitlines()
    )
    links = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)
    ]
    return maps + sum(link.startswith(f"{directory}/") for link in links)


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def _about(event: str, arguments: tuple[Any, ...]) -> str:
    if event == "exec":
        return str(arguments[0].co_filename)
    return str(arguments[1] if event == "compile" else arguments[0])[:200]


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    directory: str = asked["directory"]
    opened: set[str] = set()
    dangers: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).startswith(f"{directory}/"):
            opened.add(str(arguments[0])[len(directory) + 1 :])
        elif event in _DANGERS:
            dangers.append(f"{event} {_about(event, arguments)}")

    modules, before_kib = set(sys.modules), _peak_kib()
    error, tokens, num_maps, num_not_finite = "", [], 0, 0
    sys.addaudithook(watch)
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    try:
        assembled = load(directory, asked["manifest"])
    except ConfigError as refusal:
        error = str(refusal)
    took_s, took_cpu_s = time.monotonic() - started_s, time.process_time() - started_cpu_s
    if not error:
        num_maps = num_maps_of(directory)
        for name in asked["destroyed"]:
            os.truncate(f"{directory}/{name}", 0)
            Path(directory, name).write_bytes(b"\xff" * 100)
        tokens = some_tokens(assembled)
        num_not_finite = assembled.info.num_not_finite_tensors
    return {
        "error": error,
        "wall_s": took_s,
        "cpu_s": took_cpu_s,
        "grown_mib": (_peak_kib() - before_kib) / 1024,
        "modules": sorted(set(sys.modules) - modules),
        "opened": sorted(opened),
        "dangers": dangers,
        "tokens": tokens,
        "num_maps": num_maps,
        "num_not_finite": num_not_finite,
    }


def _peak_kib() -> int:
    """A forked process begins with what it has, not with its parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        sys.stdout.flush()
        if os.fork() == 0:
            print(json.dumps(_answer(json.loads(line))), flush=True)
            os._exit(0)
        _, status = os.wait()
        if status:
            print(json.dumps({"killed": status}), flush=True)


if __name__ == "__main__":
    main()
