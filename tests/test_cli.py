"""The command line: flags, help, and sentences instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from server import __version__, cli
from server.cli import main
from server.config import EngineConfig, GenerateConfig, ServeConfig
from tests.serving import ROOT

GROUPS = ("server", "security", "engine")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_version() -> None:
    assert run("--version").stdout == f"continuo {__version__}\n"


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())  # as if it were one line


def flags_of(*configs: type) -> list[str]:
    names = [field.name for config in configs for field in fields(config)]
    return [f"--{name.replace('_', '-')}" for name in names if name != "engine"]


def test_every_field_of_the_config_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("serve", capsys)
    assert [flag for flag in flags_of(ServeConfig, EngineConfig) if flag not in shown] == []
    shown = help_of("generate", capsys)
    assert [flag for flag in flags_of(GenerateConfig) if flag not in shown] == []


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("serve", capsys)
    assert "(default: 8000)" in shown
    assert "(default: 127.0.0.1)" in shown


def test_flags_are_few_and_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(flags_of(ServeConfig, EngineConfig)) < 40
    shown = help_of("serve", capsys)
    server, security, engine = (shown.index(f" {name}: --") for name in GROUPS)
    assert server < shown.index("--log-format {text,json} lines") < security
    assert security < shown.index("--api-key-file TEXT file") < engine
    assert engine < shown.index("--block-size N tokens")


def test_a_switch_can_be_turned_off() -> None:
    parser = cli._parser(["serve"])
    assert parser.parse_args(["serve"]).log_requests is True
    assert parser.parse_args(["serve", "--no-log-requests"]).log_requests is False


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--port", "70000"),
        ("serve", "--ssl-keyfile", "key.pem"),
        ("serve", "--allowed-origins", "example.org"),
        ("serve", "--api-key-file", "/nowhere/keys"),
        ("serve", "--drain-seconds", "-1"),
        ("serve", "--stall-seconds", "nan"),
        ("serve", "--resume-memory-mib", "0"),
        ("serve", "--block-size", "17"),
        ("serve", "--max-num-seqs", "0"),
        ("generate", "x", "--temperature", "-1"),
        ("generate", "x", "--temperature", "nan"),
    ],
)
def test_a_bad_value_is_a_sentence_that_names_the_flag(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("continuo: ")
    assert arguments[-2] in line


@pytest.mark.parametrize("command", [("serve",), ("generate", "x")])
def test_quantization_is_off_by_default(command: tuple[str, ...]) -> None:
    parser = cli._parser(command[:1])
    assert parser.parse_args(command).quantization == "none"
    assert parser.parse_args([*command, "--quantization", "int8"]).quantization == "int8"
    with pytest.raises(SystemExit):
        parser.parse_args([*command, "--quantization", "int4"])


def test_an_unknown_flag_is_status_2() -> None:
    result = run("serve", "--bogus")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_the_command_line_imports_no_room() -> None:
    code = (
        "import sys, server.cli, server.serve; "
        "print([name for name in ('torch', 'numba', 'numpy', 'fastapi', 'msgspec') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
