"""How `continuo serve` ends: by a signal, by a killed process, or before it has begun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load, save_file

from server.assembly import assemble
from server.config import EngineConfig
from server.errors import ConfigError
from server.tokenizer import load_tokenizer
from tests.serving import ROOT, Server
from tests.waiting import is_alive, wait_for


@pytest.fixture
def server(tiny_model_dir: Path) -> Iterator[Server]:
    # in which an engine may have to start: seconds of work, on a busy machine many
    running = Server(tiny_model_dir, "--drain-seconds", "120")
    try:
        yield running
    finally:
        running.clean_up()


REQUEST = {"prompt": "Once upon a time", "seed": 7, "ignore_eos": True}


def events(response: httpx.Response) -> Iterator[str]:
    return (line[len("data: ") :] for line in response.iter_lines() if line)


def test_sigterm_lets_streams_end_also_through_a_death_of_the_engine(server: Server) -> None:
    server.wait_ready()
    pids, engine = server.all_pids(), server.await_pid("engine 0")
    assert len(pids) >= 3
    request = {**REQUEST, "max_tokens": 2000}
    url = "/v1/completions"
    undisturbed = server.client.post(url, json=request).json()["choices"][0]["text"]
    with server.client.stream("POST", url, json={**request, "stream": True}) as got:
        received = events(got)
        chunks = [next(received)]
        os.kill(engine, signal.SIGSTOP)  # it does not end before we have looked
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not server.is_answering(), "the api drains")
        assert server.client.get("/health").status_code == 200
        refused = server.client.post(url, json=request)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        os.kill(engine, signal.SIGKILL)
        *rest, last = received
    assert last == "[DONE]"
    text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in [*chunks, *rest])
    assert text == undisturbed
    assert server.process.wait(timeout=20) == 0
    assert_nothing_is_left(server, pids)


def test_a_second_signal_does_not_wait_for_streams(server: Server) -> None:
    server.wait_ready()
    pids = server.all_pids()
    request = {**REQUEST, "max_tokens": 16000, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=request) as got:
        received = events(got)
        next(received)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not server.is_answering(), "the api drains")
        server.process.send_signal(signal.SIGINT)
        *_, last = received
    assert json.loads(last)["error"]["type"] == "server_error"
    assert server.process.wait(timeout=20) == 0
    assert_nothing_is_left(server, pids)


def assert_nothing_is_left(server: Server, pids: list[int]) -> None:
    assert not any(is_alive(pid) for pid in pids)
    assert os.listdir(server.temporary_dir.name) == []
    with pytest.raises(httpx.ConnectError):
        server.client.get("/health")
    assert "Traceback" not in server.stderr


def test_a_signal_during_the_start_ends_it_too(server: Server) -> None:
    wait_for(lambda: server.pid_of("engine 0"), "the engine has been spawned")
    pids = server.all_pids()
    assert server.end() == 0
    assert not any(is_alive(pid) for pid in pids)


def test_nothing_outlives_a_killed_supervisor(server: Server) -> None:
    server.wait_ready()
    pids = server.all_pids()
    server.process.kill()
    wait_for(lambda: not any(is_alive(pid) for pid in pids), "everything is gone", timeout_s=3)


def refused(*flags: str) -> str:
    """The last line of stderr when `continuo serve` cannot start; status 2, no traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "server", "serve", "--port", "0", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_a_busy_port_says_which_flag_to_use(tiny_model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        sentence = refused("--model", str(tiny_model_dir), "--port", port)
    assert port in sentence
    assert "--port" in sentence


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused("--model", str(tmp_path / "nowhere"))


def test_too_little_memory_says_what_to_do(tiny_model_dir: Path) -> None:
    sentence = refused("--model", str(tiny_model_dir), "--kv-cache-gib", "1000000")
    assert "--kv-cache-gib" in sentence


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_whichever_process_needs_it(
    tiny_model_dir: Path, tmp_path: Path, file: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    (broken / file).unlink()
    assert str(broken) in refused("--model", str(broken))


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def lose_config(model: Path) -> None:
    (model / "config.json").unlink()


def lose_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def name_another_architecture(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))


def cut_a_tensor(model: Path) -> None:
    weights = load((model / "model.safetensors").read_bytes())
    weights["h.1.mlp.c_fc.weight"] = weights["h.1.mlp.c_fc.weight"][:, 1:].contiguous()
    save_file(weights, model / "model.safetensors")


def lose_a_tensor(model: Path) -> None:
    weights = load((model / "model.safetensors").read_bytes())
    del weights["h.1.attn.c_proj.bias"]
    save_file(weights, model / "model.safetensors")


def pickle_the_weights(model: Path) -> None:
    torch.save(load((model / "model.safetensors").read_bytes()), model / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (truncate, "model.safetensors", "is truncated: the tensors take"),
        (lose_config, "config.json", "is missing"),
        (lose_tokenizer, "", "has no tokenizer: tokenizer.json,"),
        (name_another_architecture, "config.json", ": model_type 'llama' is not supported"),
        (
            cut_a_tensor,
            "model.safetensors",
            ": tensor 'h.1.mlp.c_fc.weight' has shape [128, 511], not [128, 512].",
        ),
        (lose_a_tensor, "model.safetensors", ": tensor 'h.1.attn.c_proj.bias' is missing."),
        (pickle_the_weights, "model.safetensors", "is a pickle"),
    ],
)
def test_a_broken_checkpoint_is_named_with_what_is_wrong(
    tiny_model_dir: Path, tmp_path: Path, spoil: Callable[[Path], None], file: str, reason: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    spoil(broken)
    with pytest.raises(ConfigError) as error:
        assemble(EngineConfig(model=str(broken)), load_tokenizer(str(broken)))
    _, found, said = str(error.value).partition(str(broken / file))
    assert found
    assert said.lstrip().startswith(reason)
