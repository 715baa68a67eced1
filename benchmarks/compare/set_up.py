"""Makes .venv-peers: .venv/bin/python benchmarks/compare/set_up.py VENV

Run by the Makefile with the Python of .venv, whose packages the peers share: torch is not installed twice.
What cannot be installed is written down with its reason, and the rest goes on. llama.cpp is built once, which
takes ten minutes and more on two cores; a second run finds it.
"""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata

HERE = os.path.dirname(os.path.abspath(__file__))
# The web page would be fetched or built with npm, and TLS and downloads are not measured.
CMAKE_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF",
]  # fmt: skip


class UnavailableError(Exception):
    """A peer cannot be had here; its text is the reason in the table."""


def main():
    venv = os.path.abspath(sys.argv[1])
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        say(f"making {sys.argv[1]} (CTranslate2; llama.cpp from source, which takes long)")
        subprocess.check_call([sys.executable, "-m", "venv", venv])
        share_packages(python, site.getsitepackages()[0])
    pinned = read_requirements(os.path.join(HERE, "requirements.txt"))
    versions, missing = {}, {}
    for name, install in (
        ("transformers", lambda: complete_transformers(python, pinned)),
        ("ctranslate2", lambda: install_ctranslate2(python, pinned)),
        ("llama.cpp", lambda: install_llama_cpp(venv, python, pinned)),
    ):
        try:
            versions[name] = install()
        except (UnavailableError, metadata.PackageNotFoundError) as error:
            missing[name] = f"{error}"
            say(f"{name}: {error}")
    with open(os.path.join(venv, "peers.json"), "w") as file:
        json.dump({"versions": versions, "missing": missing}, file, indent=1)


def share_packages(python, directory):
    """Packages of the new environment come first, those of `directory` behind them."""
    ask = "import site; print(site.getsitepackages()[0])"
    own = subprocess.check_output([python, "-c", ask], universal_newlines=True).strip()
    with open(os.path.join(own, "continuo-venv.pth"), "w") as file:
        file.write(directory + "\n")


def read_requirements(path):
    """name: version of each pinned line."""
    with open(path) as file:
        lines = [line.split("#")[0].strip() for line in file]
    return dict(line.split("==") for line in lines if line)


def complete_transformers(python, pinned):
    """Without accelerate only its server is missing, which says so itself."""
    try:
        pip(python, "install", f"accelerate=={pinned['accelerate']}")
    except UnavailableError as error:
        say(f"accelerate: {error}")
    return metadata.version("transformers")


def install_ctranslate2(python, pinned):
    version = pinned["ctranslate2"]
    pip(python, "install", f"ctranslate2=={version}")
    check([python, "-c", "import ctranslate2"], "is installed, but cannot be imported")
    return version


def install_llama_cpp(venv, python, pinned):
    version = pinned["llama-cpp-python"]
    tree = os.path.join(venv, "llama.cpp")
    server = os.path.join(tree, "build", "bin", "llama-server")
    stamp = os.path.join(venv, "llama.cpp.version")
    if not (os.path.exists(server) and read(stamp) == version):
        if shutil.which("cmake") is None:
            raise UnavailableError("there is no cmake to build it with")
        unpack(venv, python, version)
        build(tree)
        with open(stamp, "w") as file:
            file.write(version)
    pip(python, "install", f"diskcache=={pinned['diskcache']}")
    libraries = {**os.environ, "LLAMA_CPP_LIB_PATH": os.path.dirname(server)}
    check([python, "-c", "import llama_cpp"], "is built, but its bindings do not load", libraries)
    return f"of llama-cpp-python {version}"


def unpack(venv, python, version):
    """llama.cpp's tree beside the environment's packages, the bindings (pure Python) among them."""
    with tempfile.TemporaryDirectory() as folder:
        source = ["--no-binary", "llama-cpp-python", "--no-deps", "-d", folder]
        pip(python, "download", *source, f"llama-cpp-python=={version}")
        (name,) = [name for name in os.listdir(folder) if name.endswith(".tar.gz")]
        with tarfile.open(os.path.join(folder, name)) as archive:
            top = name[: -len(".tar.gz")]
            members = [
                each for each in archive.getmembers()
                if each.name.startswith((f"{top}/vendor/llama.cpp/", f"{top}/llama_cpp/"))
            ]  # fmt: skip
            archive.extractall(folder, members, filter="data")
        tree = os.path.join(folder, top, "vendor", "llama.cpp")
        if not os.path.exists(os.path.join(tree, "tools", "server", "CMakeLists.txt")):
            raise UnavailableError("the tree inside llama-cpp-python has no server")
        shutil.copytree(tree, os.path.join(venv, "llama.cpp"), dirs_exist_ok=True)
        ask = "import site; print(site.getsitepackages()[0])"
        own = subprocess.check_output([python, "-c", ask], universal_newlines=True).strip()
        bindings = os.path.join(own, "llama_cpp")
        shutil.copytree(os.path.join(folder, top, "llama_cpp"), bindings, dirs_exist_ok=True)


def build(tree):
    say("building llama.cpp's server")
    nice = ["nice", "-n", "19", "cmake"]
    folder = os.path.join(tree, "build")
    failure = "does not build (cmake's own message is above)"
    check([*nice, "-S", tree, "-B", folder, *CMAKE_OPTIONS], failure)
    jobs = str(len(os.sched_getaffinity(0)))
    check([*nice, "--build", folder, "--target", "llama-server", "-j", jobs], failure)


def pip(python, *arguments):
    command = [python, "-m", "pip", "--disable-pip-version-check", arguments[0], "-qq"]
    constraints = os.path.join(HERE, "..", "..", "constraints.txt")
    check([*command, "-c", constraints, *arguments[1:]], "pip cannot install it")


def check(command, failure, environment=None):
    if subprocess.call(command, env=environment, stdout=sys.stderr) != 0:
        raise UnavailableError(failure)


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def say(sentence):
    sys.stderr.write(f"peers: {sentence}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
