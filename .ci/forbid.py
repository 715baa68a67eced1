"""What no file of ours may do: python .ci/forbid.py

Code that comes as data (pickles, eval, templates, imports by a name from outside), shells, clients of other
hosts in what serves, and asserts where bytes of a client, a file or a peer are read: `python -O` drops them.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("server", "kernels", "benchmarks", ".ci")

# Modules whose use is running what was sent, or templates that can.
MODULES = {
    "_pickle", "bdb", "cPickle", "cloudpickle", "code", "codeop", "concurrent.futures.ProcessPoolExecutor",
    "concurrent.futures.process", "dill", "imp", "importlib.machinery", "jinja2", "joblib", "jsonpickle",
    "logging.config", "logging.handlers", "mako", "marshal", "multiprocessing", "numpy.lib.format", "pdb",
    "pickle", "pickletools", "pkgutil", "runpy", "shelve", "torch.hub", "torch.jit", "torch.multiprocessing",
    "torch.package", "torch.serialization", "torch.utils.cpp_extension", "xmlrpc", "yaml", "zipimport", "zmq",
}  # fmt: skip
# Of these a server needs none: it answers, and asks nobody.
CLIENTS = {
    "aiohttp", "ftplib", "http.client", "httpx", "huggingface_hub", "imaplib", "nntplib", "poplib",
    "requests", "smtplib", "telnetlib", "urllib.request", "urllib3", "webbrowser", "websockets",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "breakpoint", "__import__"}
CALLS = {
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.breakpoint", "builtins.__import__",
    "os.system", "importlib.util.spec_from_file_location", "site.addsitedir", "timeit.timeit",
    "torch.classes.load_library", "torch.ops.load_library",
    "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.load", "torch.save",
    "asyncio.create_subprocess_shell", "types.CodeType", "types.FunctionType",
}  # fmt: skip
NAMED_IMPORTS = {"importlib.import_module", "importlib.__import__"}
KEYWORDS = {
    ("shell", True),
    ("allow_pickle", True),
    ("trust_remote_code", True),
    ("weights_only", False),
}

# file: what it may do all the same, and why
ALLOWED = {
    "benchmarks/__main__.py": {"importlib.import_module"},  # of a table in the same file
    # of our benchmarks, named by our parent process
    "benchmarks/gpu/child.py": {"importlib.import_module"},
    # of our kernels, named by a table of ours; workers get their cases from the process that forks them
    "benchmarks/kernels/worker.py": {"importlib.import_module", "multiprocessing"},
    "benchmarks/kernels/parallel.py": {"multiprocessing"},
}
# Rooms that read what others wrote. There an assert may only tell the type checker what holds anyway.
READERS = (
    "server/api", "server/ipc", "server/grammar", "server/model", "server/tokenizer", "server/api_keys.py",
    "server/model_files.py", "server/startup.py", "server/serve.py", "server/bench/sse.py",
)  # fmt: skip
MAY_ASK = ("server/bench/", "benchmarks/", ".ci/")  # clients are their work


class Finder(ast.NodeVisitor):
    """Collects what a module does that is forbidden, under any name that it has given it."""

    def __init__(self, name):
        self.name = name
        self.found = []
        self._names = {}  # local name -> what it stands for
        self._called = set()  # looked at as calls
        self._roots = set()  # of what was imported: `torch` of torch.nn
        self._is_reader = any(name == room or name.startswith(f"{room}/") for room in READERS)
        self._modules = MODULES if name.startswith(MAY_ASK) else MODULES | CLIENTS

    def _note(self, what, node):
        if what not in ALLOWED.get(self.name, ()):
            self.found.append((node.lineno, what))

    def _check_module(self, module, node):
        for forbidden in self._modules:
            if module == forbidden or module.startswith(f"{forbidden}."):
                self._note(forbidden, node)

    def visit_Import(self, node):
        for alias in node.names:
            self._check_module(alias.name, node)
            self._roots.add(alias.name.split(".")[0])
            self._names[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node):
        for alias in node.names:
            full = f"{node.module or ''}.{alias.name}"
            self._roots.add(full.split(".")[0])
            self._names[alias.asname or alias.name] = full
            self._check_module(full, node)
            if full in CALLS | NAMED_IMPORTS:
                self._note(full, node)

    def visit_Name(self, node):
        if node.id in BUILTINS:
            self._note(node.id, node)

    def visit_Attribute(self, node):
        full = self._full_name(node)
        if full.split(".")[0] in self._roots:
            self._check_module(full, node)
        if full in CALLS or (full in NAMED_IMPORTS and node not in self._called):
            self._note(full, node)
        self.generic_visit(node)

    def visit_Call(self, node):
        full = self._full_name(node.func)
        self._called.add(node.func)
        is_fixed = bool(node.args) and isinstance(node.args[0], ast.Constant)
        if full in NAMED_IMPORTS and not is_fixed:
            self._note(full, node)
        if full in NAMED_IMPORTS and is_fixed:
            self._check_module(str(node.args[0].value), node)
        if full == "getattr" and any(
            isinstance(each, ast.Constant) and each.value in BUILTINS for each in node.args
        ):
            self._note("getattr", node)
        for keyword in node.keywords:
            value = keyword.value
            if (keyword.arg, getattr(value, "value", None)) in KEYWORDS:
                self._note(f"{keyword.arg}={value.value}", node)
        self.generic_visit(node)

    def visit_Assert(self, node):
        if self._is_reader and not _is_for_types(node.test):
            self._note("assert", node)
        self.generic_visit(node)

    def _full_name(self, node):
        """`t.load` is torch.load after `import torch as t`."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self._full_name(node.value)}.{node.attr}"
        return ""


def _is_for_types(test):
    """`x is not None`, `isinstance(x, T)`, and these joined by `and`."""
    if isinstance(test, ast.BoolOp):
        return isinstance(test.op, ast.And) and all(map(_is_for_types, test.values))
    if isinstance(test, ast.Compare):
        right = test.comparators[-1]
        return (
            len(test.ops) == 1
            and isinstance(test.ops[0], ast.IsNot)
            and isinstance(right, ast.Constant)
            and right.value is None
        )
    return isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"


def dangers(source, name):
    """(line, what) of each, by line; `name`: the file's, relative to the project."""
    finder = Finder(name)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found))


def main():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    num_found = 0
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        for line, what in dangers(path.read_text(encoding="utf-8"), name):
            num_found += 1
            print(f"{name}:{line}: {what} is forbidden here (.ci/forbid.py says why)")
    if not num_found:
        print(f"{len(files)} files: nothing forbidden")
    return 1 if num_found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
