"""Makes .venv-clients, the clients that `make clients` runs: .venv/bin/python .ci/set_up_clients.py VENV

Run by the Makefile with the Python of .venv, whose packages the clients share: torch is not installed twice.
"""

import os
import site
import subprocess
import sys

REQUIREMENTS = ["-c", "constraints.txt", "-r", "tests/clients/requirements.txt"]


def main():
    venv = sys.argv[1]
    python = os.path.join(venv, "bin", "python")
    say(f"making {venv} (lm-evaluation-harness, guidellm, schemathesis; a minute)")
    run(
        [sys.executable, "-m", "venv", "--clear", venv], "the virtual environment could not be made"
    )
    share_packages(python, site.getsitepackages()[0])
    # Without this pip would fetch a torch of its own, with some gigabytes of CUDA.
    run([python, "-c", "import torch"], f"{venv} does not see the packages of {sys.prefix}")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    run([*pip, *REQUIREMENTS], "pip could not install everything (its own message is above)")


def share_packages(python, directory):
    """Packages of the new environment come first, those of `directory` behind them."""
    ask = "import site; print(site.getsitepackages()[0])"
    own = subprocess.check_output([python, "-c", ask], universal_newlines=True).strip()
    with open(os.path.join(own, "continuo-venv.pth"), "w") as file:
        file.write(directory + "\n")


def say(sentence):
    sys.stderr.write(f"clients: {sentence}\n")
    sys.stderr.flush()


def run(command, failure):
    if subprocess.call(command) != 0:
        say(f"{failure}: {' '.join(command)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
