"""Makes .venv and installs the project into it: python3 .ci/set_up.py VENV auto|cpu|cuda

Run by the Makefile with any Python from 3.6 on: one that is too old is told so.
"""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.request

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_TIMEOUT_S = 5
CONSTRAINTS = ["-c", "constraints.txt"]
TORCH = "torch>=2.11,<2.14"
PROJECT = ".[test,train,bench]"


def main():
    venv, torch = sys.argv[1:3]
    check_machine()
    python = make_venv(venv)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    say(f"installing torch ({torch})")
    install(pip, torch_arguments(pip, torch))
    say("installing continuo and what its tests need")
    install(pip, ["-e", PROJECT])
    say("compiling the CPU kernels into their cache")
    if subprocess.call([python, "-m", "server", "warm-up"]) != 0:
        say("that failed, so the first start will take half a minute longer")


def say(sentence):
    sys.stderr.write(f"setup: {sentence}\n")
    sys.stderr.flush()


def stop(sentence):
    say(sentence)
    sys.exit(1)


def check_machine():
    if platform.system() != "Linux":
        stop(f"Continuo runs on Linux (x86-64 or arm64); this is {platform.system()}.")
    if sys.version_info < (3, 10):
        stop(
            f"Continuo needs Python 3.10 or newer; {sys.executable} is {platform.python_version()}. "
            "Name another one: make PYTHON=python3.11 setup"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            f"{sys.executable} has no venv module. On Debian and Ubuntu: sudo apt install python3-venv"
        )
    try:
        ctypes.CDLL("libgomp.so.1.0.0")  # numba's threads; the name it links
    except OSError:
        stop(
            "the OpenMP runtime libgomp is missing. On Debian and Ubuntu: sudo apt install libgomp1"
        )


def make_venv(path):
    python = os.path.join(path, "bin", "python")
    if not os.path.exists(python):
        say(f"making {path} with {sys.executable}")
        run([sys.executable, "-m", "venv", path], "the virtual environment could not be made")
    return python


def run(command, failure):
    if subprocess.call(command) != 0:
        stop(f"{failure}: {' '.join(command)}")


def install(pip, arguments):
    run(
        [*pip, "install", "-qq", *CONSTRAINTS, *arguments],
        "pip could not install everything (its own message is above)",
    )


def torch_arguments(pip, choice):
    """What to tell pip, so that a machine without an NVIDIA driver fetches no gigabytes of CUDA."""
    if choice == "cuda" or (choice == "auto" and has_nvidia_driver()):
        return [TORCH]
    if choice not in ("auto", "cpu"):
        stop(f"TORCH={choice} is not auto, cpu or cuda.")
    cuda_packages = cuda_packages_of(pip, [TORCH])
    if not cuda_packages:
        return [TORCH]
    if index_answers(TORCH_CPU_INDEX):
        return ["--index-url", TORCH_CPU_INDEX, TORCH]
    if choice == "cpu":
        stop(
            f"TORCH=cpu: pip would fetch a CUDA build ({cuda_packages[0]}, ...), and "
            f"{TORCH_CPU_INDEX} does not answer."
        )
    say(
        f"no CPU build of torch is within reach ({TORCH_CPU_INDEX} does not answer): pip installs the "
        "CUDA build, which takes some gigabytes and runs on the CPU too"
    )
    return [TORCH]


def has_nvidia_driver():
    return os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi") is not None


def cuda_packages_of(pip, arguments):
    """The CUDA packages that pip, with the machine's own settings, would install for torch."""
    with tempfile.TemporaryDirectory() as directory:
        report = os.path.join(directory, "report.json")
        command = [*pip, "install", "-qq", "--dry-run", "--ignore-installed", "--report", report]
        run([*command, *CONSTRAINTS, *arguments], "pip finds no torch for this machine")
        with open(report) as file:
            names = [item["metadata"]["name"].lower() for item in json.load(file)["install"]]
    return [name for name in names if name.startswith(("nvidia-", "cuda-"))]


def index_answers(url):
    try:
        urllib.request.urlopen(url + "/torch/", timeout=INDEX_TIMEOUT_S).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
