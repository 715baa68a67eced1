"""Run as `python -m tests.supervised.supervisor DIR NAME...`: supervises one child of each name."""

from __future__ import annotations

import logging
import os
import sys

from server.supervisor import ChildSpec, Supervisor


def main() -> None:
    directory, *names = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    specs = [
        ChildSpec(
            name,
            [sys.executable, "-m", "tests.supervised.child", name],
            {"dir": directory},
            dict(os.environ),
            stop_s=60.0 if name == "deaf" else 0.5,
        )
        for name in names
    ]
    supervisor = Supervisor(
        specs, lambda: print("ready", flush=True), lambda: print("stopping", flush=True)
    )
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
