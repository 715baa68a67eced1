"""One model's rounds: every engine in turn, then every server in turn, and again (A B C, A B C, ...).

Offline engines are loaded once and stopped while others run. Servers are started anew in each round, so none
idles beside another. Prompts are new in every round: no prefix cache knows them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from benchmarks.compare.engines import (
    NO_BF16,
    PROMPT_TOKENS,
    REFERENCE,
    SERVERS,
    THREADS,
    Engine,
    Plan,
    Server,
)
from benchmarks.compare.environment import Peers
from benchmarks.compare.models import ModelStore, shape_of
from benchmarks.compare.over_http import bench, running
from benchmarks.compare.samples import (
    DECODE_RATE,
    HTTP,
    ITL,
    OFFLINE,
    RATE,
    SHARE,
    TPOT,
    TTFT,
    Case,
    Samples,
    equal_prefix,
)
from benchmarks.compare.worker_process import PeerError, WorkerProcess

_LOAD_S = 300.0  # conversions, and a first compilation of our kernels, included
_RUN_S = 300.0
_WARM_UP_TOKENS = 2
_CACHE_BYTES = 64 << 20  # a model that a cache may hold has no share of the memory bus

Say = Callable[[str], None]


def prompts_of(seed: str, streams: int) -> list[list[int]]:
    """Distinct from their first id on. Ids below 100 are special in some vocabularies."""
    rng = Random(seed)
    return [
        [100 + stream, *rng.choices(range(200, 1000), k=PROMPT_TOKENS - 1)]
        for stream in rng.sample(range(100), streams)
    ]


class ModelRounds:
    def __init__(
        self, plan: Plan, wanted: set[str], store: ModelStore, peers: Peers, folder: Path, say: Say
    ) -> None:
        self._plan, self._wanted, self._store, self._peers = plan, wanted, store, peers
        self._folder, self._say = folder, say
        self._shape = shape_of(plan.model)
        self._workers: dict[str, WorkerProcess] = {}
        self._outputs: dict[str, list[list[int]]] = {}  # of the first round, most streams but few

    def run(self, samples: Samples) -> None:
        with ExitStack() as stack:
            reader = self._start_all(samples, stack)
            for index in range(self._plan.repeats):
                self._offline_round(index, samples, reader)
                self._http_round(index, samples)
        self._compare_ids(samples)

    def _start_all(self, samples: Samples, stack: ExitStack) -> WorkerProcess:
        for engine in self._plan.engines:
            if not self._is_wanted(engine):
                continue
            if (reason := self._peers.missing.get(engine.peer)) is not None:
                samples.drop(self._plan.model, OFFLINE, engine.name, reason)
                continue
            if engine.is_hopeless:
                samples.drop(self._plan.model, OFFLINE, engine.name, NO_BF16)
                continue
            self._say(f"{self._plan.model}: loading {engine.name}")
            try:
                self._workers[engine.name] = worker = self._start(engine)
                stack.callback(worker.end)
                for streams in self._streams(engine, 0):
                    self._ask(worker, "warm", streams, _WARM_UP_TOKENS)
            except PeerError as error:
                self._drop(samples, engine, error)
        num_bytes = int(self._shape.weight_bytes("bfloat16"))
        command = self._command(Path(sys.executable), "read", str(num_bytes), "-")
        reader = WorkerProcess(command, self._folder / "read.log", _LOAD_S)
        stack.callback(reader.end)
        return reader

    def _is_wanted(self, engine: Engine | Server) -> bool:
        is_in_plan = engine.form in self._plan.forms
        return is_in_plan and (engine.peer == "continuo" or engine.peer in self._wanted)

    def _start(self, engine: Engine) -> WorkerProcess:
        model, reason = self._store.get(self._plan.model, engine.model_form)
        if model is None:
            raise PeerError(reason)
        python = Path(sys.executable) if engine.peer == "continuo" else self._peers.python
        log = self._folder / f"{engine.name}.log".replace(" ", "-")
        return WorkerProcess(
            self._command(python, engine.kind, str(model), engine.form), log, _LOAD_S
        )

    def _command(self, python: Path, kind: str, model: str, form: str) -> list[str]:
        most = str(max(self._plan.num_tokens))
        worker = "benchmarks.compare.worker"
        return [str(python), "-m", worker, kind, model, form, str(THREADS), most]

    def _streams(self, engine: Engine, index: int) -> list[int]:
        is_wide = engine.is_wide and index < self._plan.wide_repeats
        return [streams for streams in self._plan.num_tokens if streams <= 8 or is_wide]

    def _drop(self, samples: Samples, engine: Engine, error: PeerError) -> None:
        self._workers.pop(engine.name, None)
        self._say(f"{self._plan.model}: {engine.name}: {error}")
        samples.drop(self._plan.model, OFFLINE, engine.name, str(error))

    def _offline_round(self, index: int, samples: Samples, reader: WorkerProcess) -> None:
        for streams in self._plan.num_tokens:
            self._say(f"{self._plan.model}: round {index + 1}, {streams} streams, offline")
            for engine in self._plan.engines:
                worker = self._workers.get(engine.name)
                if worker is None or streams not in self._streams(engine, index):
                    continue
                try:
                    self._measure(engine, worker, streams, index, samples, reader)
                except PeerError as error:
                    self._drop(samples, engine, error)

    def _measure(
        self,
        engine: Engine,
        worker: WorkerProcess,
        streams: int,
        index: int,
        samples: Samples,
        reader: WorkerProcess,
    ) -> None:
        """The bus is read before and behind one stream: its bandwidth changes from minute to minute."""
        case = Case(self._plan.model, OFFLINE, engine.name, streams)
        num_tokens = self._plan.num_tokens[streams]
        before_s = reader.ask({}, _RUN_S)["read_s"] if streams == 1 else 0.0
        first_s, seconds, outputs = self._ask(worker, str(index), streams, num_tokens)
        samples.add(case, RATE, index, streams * num_tokens / seconds)
        step_s = (seconds - first_s) / (num_tokens - 1)
        if (
            step_s > 0
        ):  # else noise was longer than the whole run: of this round there is no step time
            samples.add(case, DECODE_RATE, index, streams / step_s)
        if streams == 1 and step_s > 0 and self._shape.weight_bytes("bfloat16") > _CACHE_BYTES:
            read_s = (before_s + reader.ask({}, _RUN_S)["read_s"]) / 2
            per_byte_s = read_s / int(self._shape.weight_bytes("bfloat16"))
            ideal_s = self._shape.weight_bytes(engine.weights) * per_byte_s
            samples.add(case, SHARE, index, ideal_s / step_s)
        if index == 0 and streams <= 8:
            self._outputs[engine.name] = outputs

    def _ask(
        self, worker: WorkerProcess, seed: str, streams: int, num_tokens: int
    ) -> tuple[float, float, list[list[int]]]:
        """Seconds to the first token of all streams, to the last, and the ids. Raises PeerError."""
        reply = worker.ask(
            {
                "prompts": prompts_of(f"{seed} {streams}", streams),
                "first_prompts": prompts_of(f"{seed} {streams} first", streams),
                "num_tokens": num_tokens,
            },
            _RUN_S,
        )
        lengths = [len(output) for output in reply["outputs"]]
        if lengths != [num_tokens] * streams:
            worker.end()
            raise PeerError(f"generated {lengths[:8]} ids, not {num_tokens} for each of {streams}")
        return reply["first_s"], reply["seconds"], reply["outputs"]

    def _http_round(self, index: int, samples: Samples) -> None:
        for server in SERVERS if self._plan.in_flight else ():
            key = (self._plan.model, HTTP, server.name)
            if not self._is_wanted(server) or key in samples.missing:
                continue
            if (reason := self._peers.missing.get(server.peer)) is not None:
                samples.drop(*key, reason)
                continue
            self._say(f"{self._plan.model}: round {index + 1}, HTTP, {server.name}")
            try:
                self._serve(server, index, samples)
            except PeerError as error:
                self._say(f"{self._plan.model}: {server.name}: {error}")
                samples.drop(*key, str(error))

    def _serve(self, server: Server, index: int, samples: Samples) -> None:
        model, reason = self._store.get(self._plan.model, server.model_form)
        if model is None:
            raise PeerError(reason)
        log = self._folder / f"{server.name}-server.log".replace(" ", "-")
        with running(server, model, self._peers, log) as url:
            for in_flight in self._plan.in_flight:
                tokens, seed = self._plan.http_tokens, 100 * index + in_flight
                load = bench(server, url, model, in_flight=in_flight, tokens=tokens, seed=seed)
                case = Case(self._plan.model, HTTP, server.name, in_flight)
                samples.add(case, RATE, index, load.tokens_per_s)
                figures = ((ITL, load.itl_ms), (TPOT, load.tpot_ms), (TTFT, load.ttft_ms))
                for name, value in figures:
                    if value is not None:
                        samples.add(case, name, index, value)

    def _compare_ids(self, samples: Samples) -> None:
        reference = self._outputs.get(REFERENCE)
        for name, outputs in self._outputs.items():
            if reference is not None and name in self._workers:
                equal = equal_prefix(outputs, reference)
                samples.agreement[self._plan.model, name] = equal
