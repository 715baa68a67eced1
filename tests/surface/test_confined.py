"""As the image is meant to be run: a read-only root, a tmpfs for temporary files, no capability, no way to
gain one. Without Docker: a mount namespace gives the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Server
from tests.surface.exercise import BAD, GOOD, RAW, exercise

_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
# Every file system that is mounted becomes read-only, but for the kernel's own; then TMPDIR is a fresh one.
_CONFINE = """
set -e
unset NUMBA_CACHE_DIR TRITON_CACHE_DIR  # conftest.py's: it shall find its own
awk '$3 !~ /^(proc|sysfs|cgroup2?|devpts|mqueue)$/ { print $2, $4 }' /proc/self/mounts |
while read -r place flags; do
    kept=$(echo "$flags" | tr , '\\n' | grep -E '^no(suid|dev|exec|atime)$|^relatime$' | paste -sd,)
    mount -o "remount,bind,ro${kept:+,$kept}" "$place" 2>/dev/null || true
done
mount -t tmpfs -o mode=1777 tmpfs "$TMPDIR"
! touch "$0.written" 2>/dev/null
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def _may_confine() -> bool:
    if not all(map(shutil.which, ("unshare", "setpriv", "awk"))):
        return False
    tried = [*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(tried, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(
    not _may_confine(), reason="a read-only root needs unshare, setpriv and user namespaces"
)


@pytest.fixture(scope="module")
def confined(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    script = tmp_path_factory.mktemp("confine") / "confine"
    script.write_text(_CONFINE)
    python = (*_UNSHARE, "sh", str(script), sys.executable)
    running = Server(tiny_model_dir, python=python, env={"PYTHONDONTWRITEBYTECODE": "1"})
    try:
        yield running.wait_ready()
    finally:
        running.clean_up()


def test_it_serves(confined: Server, server: Server) -> None:
    said = exercise(confined.client)
    assert len(said) == len(GOOD) + len(BAD) + len(RAW)
    assert said == exercise(server.client)


def test_it_is_confined(confined: Server) -> None:
    for pid in confined.all_pids():
        status = Path(f"/proc/{pid}/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines())
        assert facts["NoNewPrivs"] == "1"
        assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    mounts = Path(f"/proc/{confined.pid_of('engine 0')}/mounts").read_text().splitlines()
    (root, *_) = [line.split() for line in mounts if line.split()[1] == "/"]
    assert "ro" in root[3].split(",")
