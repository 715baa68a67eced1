"""The file of API keys: what it may hold, how it is refused, how it is read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from server import api_keys
from server.api_keys import NO_LIMITS, KeyFile, KeyLimits, make_key, read_keys
from server.cli import main
from server.config import ServeConfig
from server.errors import ConfigError
from server.startup import check_doors, resolve_serve


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(path: Path, text: str) -> str:
    """As a new file, so that its inode changes too."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.rename(path)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the keys is a second after the last."""
    monkeypatch.setattr(api_keys, "_CHECK_EVERY_S", 0.0)


def test_names_scopes_and_comments(path: Path) -> None:
    text = f"# people\n\nann {digest('a')}\nbob {digest('b').upper()} metrics,infer # on call\n"
    keys = KeyFile(write(path, text))
    ann, bob = keys.find(b"a"), keys.find(b"b")
    assert ann is not None
    assert bob is not None
    assert (ann.name, ann.scopes) == ("ann", {"infer"})
    assert (bob.name, bob.scopes) == ("bob", {"infer", "metrics"})
    for wrong in (b"", b"A", b"aa", digest("a").encode(), bytes.fromhex(digest("a")), b"\xff"):
        assert keys.find(wrong) is None


def test_all_keys_are_compared_and_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right or wrong, first or last: how long it takes says nothing."""
    compared: list[bytes] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return one == other

    names = "abcde"
    keys = KeyFile(write(path, "".join(f"{name} {digest(name)}\n" for name in names)))
    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare_digest)
    for key in (b"a", b"c", b"e", b"x"):
        compared.clear()
        assert (keys.find(key) is None) == (key == b"x")
        assert compared == [bytes.fromhex(digest(name)) for name in names]


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("", NO_LIMITS),
        ("infer", NO_LIMITS),
        ("requests_per_s=2", KeyLimits(requests_per_s=2)),
        ("infer concurrent=8 requests_per_s=0.5", KeyLimits(0.5, None, 8)),
        ("metrics,infer tokens_per_min=60000.25", KeyLimits(tokens_per_min=60000.25)),
    ],
)
def test_limits_follow_the_scopes_or_stand_for_themselves(
    path: Path, words: str, limits: KeyLimits
) -> None:
    keys = KeyFile(write(path, f"ann {digest('a')} {words} # why\nbob {digest('b')}\n"))
    found = keys.find(b"a")
    assert found is not None
    assert found.limits == keys.limits_of("ann") == limits
    assert found.scopes == ({"infer", "metrics"} if "metrics" in words else {"infer"})
    assert keys.limits_of("bob") is keys.limits_of("nobody") is NO_LIMITS


@pytest.mark.usefixtures("unhurried")
def test_changed_limits_are_read_again(path: Path) -> None:
    keys = KeyFile(write(path, f"ann {digest('a')} concurrent=1\n"))
    assert keys.limits_of("ann").concurrent == 1
    write(path, f"ann {digest('a')} concurrent=2\n")
    keys.find(b"")
    assert keys.limits_of("ann").concurrent == 2
    write(path, f"ann {digest('a')}\n")
    keys.find(b"")
    assert keys.limits_of("ann") is NO_LIMITS


@pytest.mark.parametrize(
    "line",
    [
        "ann",
        f"ann {digest('a')} infer requests_per_s",
        f"ann {digest('a')} infer requests_per_s=",
        f"ann {digest('a')} infer requests_per_s=0",
        f"ann {digest('a')} infer requests_per_s=0.0",
        f"ann {digest('a')} infer requests_per_s=-1",
        f"ann {digest('a')} infer requests_per_s=1e3",
        f"ann {digest('a')} infer requests_per_s=nan",
        f"ann {digest('a')} infer requests_per_s=٣",
        f"ann {digest('a')} infer concurrent=1.5",
        f"ann {digest('a')} infer concurrent=1 concurrent=2",
        f"ann {digest('a')} infer tokens=5",
        f"ann {digest('a')} infer =5",
        f"ann {digest('a')} concurrent=1 infer",
        f"ann {'0' * 63}",
        f"ann {'g' * 64}",
        f"ann {digest('a')} admin",
        f"ann {digest('a')} infer,",
        f"ann {digest('a')} infer metrics",
        f"{'x' * 65} {digest('a')}",
        f"a/b {digest('a')}",
    ],
)
def test_a_line_that_is_not_understood_is_named_by_its_number(path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2 is not"):
        read_keys(write(path, f"ok {digest('ok')}\n{line}\n"))


@pytest.mark.parametrize("again", [f"ann {digest('b')}", f"bob {digest('a')}"])
def test_a_name_or_a_key_twice_is_refused(path: Path, again: str) -> None:
    with pytest.raises(ConfigError, match="line 2 repeats"):
        read_keys(write(path, f"ann {digest('a')}\n{again}\n"))


@pytest.mark.parametrize("text", ["", "\n# nobody yet\n"])
def test_a_file_without_keys_is_refused(path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(write(path, text))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_a_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    write(path, f"ann {digest('a')}\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(str(path))


def test_what_is_no_file_of_text_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keys(str(path))
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        read_keys(str(path))
    path.unlink()
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="UTF-8"):
        read_keys(str(path))
    monkeypatch.setattr(api_keys, "_MAX_FILE_BYTES", 1)
    with pytest.raises(ConfigError, match="larger than"):
        read_keys(str(path))


@pytest.mark.usefixtures("unhurried")
def test_a_changed_file_is_read_again(path: Path) -> None:
    keys = KeyFile(write(path, f"ann {digest('a')}\n"))
    assert keys.find(b"b") is None
    write(path, f"ann {digest('a')}\nbob {digest('b')}\n")
    assert keys.find(b"b") is not None
    path.write_text(f"bob {digest('b')}\n")  # in place
    assert keys.find(b"a") is None


def test_the_file_is_looked_at_once_a_second_at_most(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(api_keys.time, "monotonic", lambda: now)
    keys = KeyFile(write(path, f"ann {digest('a')}\n"))
    write(path, f"bob {digest('b')}\n")
    now += 0.9
    assert keys.find(b"b") is None
    now += 0.2
    assert keys.find(b"b") is not None


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("new", ["", "nonsense", None])
def test_a_broken_new_file_keeps_the_old_keys_and_is_reported_once(
    path: Path, new: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = KeyFile(write(path, f"ann {digest('a')}\n"))
    if new is None:
        path.unlink()
    else:
        write(path, new)
    assert keys.find(b"a") is not None
    assert keys.find(b"a") is not None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "stay in force" in record.message
    write(path, f"bob {digest('b')}\n")
    assert keys.find(b"b") is not None
    assert keys.find(b"a") is None


@pytest.mark.usefixtures("unhurried")
def test_a_file_that_was_closed_to_others_after_the_complaint_is_read(path: Path) -> None:
    """As the log's sentence asks for; chmod leaves the time of the last writing as it is."""
    keys = KeyFile(write(path, f"ann {digest('a')}\n"))
    write(path, f"bob {digest('b')}\n")
    path.chmod(0o644)
    assert keys.find(b"b") is None
    path.chmod(0o600)
    assert keys.find(b"b") is not None


def test_the_command_makes_a_line_that_the_key_opens(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", "ann", "--scopes", "infer,metrics"]) == 0
    shown = capsys.readouterr()
    key = shown.err.split("shown only now: ")[1].split()[0]
    found = KeyFile(write(path, shown.out)).find(key.encode())
    assert found is not None
    assert (found.name, found.scopes) == ("ann", {"infer", "metrics"})
    assert key not in shown.out
    assert make_key("ann", "infer") != make_key("ann", "infer")


def test_the_command_writes_limits_as_the_file_has_them(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("--requests-per-s", "0.25", "--tokens-per-min", "12345678", "--concurrent", "4")
    assert main(["key", "ann", *limits]) == 0
    keys = KeyFile(write(path, capsys.readouterr().out))
    assert keys.limits_of("ann") == KeyLimits(0.25, 12345678, 4)


@pytest.mark.parametrize(
    "arguments",
    [
        ("a b",),
        ("",),
        ("ann", "--scopes", "admin"),
        ("ann", "--scopes", "concurrent=1"),
        ("ann", "--concurrent", "1.5"),
        ("ann", "--requests-per-s", "0"),
        ("ann", "--requests-per-s", "-1"),
        ("ann", "--tokens-per-min", "nan"),
        ("ann", "--tokens-per-min", "inf"),
    ],
)
def test_the_command_refuses_what_the_file_would(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["key", *arguments]) == 2
    assert "1 to 64 letters" in capsys.readouterr().err


def test_keys_are_checked_before_anything_starts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = resolve_serve(ServeConfig(api_key_file="keys"))
    assert config.api_key_file == str(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        check_doors(config)
    write(path, f"ann {digest('a')}\n")
    check_doors(config)
