"""`python -m server` and the command `continuo`."""

from __future__ import annotations

import sys

from server.cli import main as run_command


def main() -> None:
    sys.exit(run_command())


if __name__ == "__main__":
    main()
