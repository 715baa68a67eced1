"""Both forms of a log line; and that neither holds what an exception or a library quotes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.serving import ROOT

SECRET = "the prompt of a client"
CODE = """
import asyncio, logging, sys, threading, warnings
from server.logs import set_up_logging
set_up_logging("engine 0", sys.argv[1])
log = logging.getLogger("server.x")
log.debug("hidden")
log.info("two\\nlines: %s", "\\u00e4")
SECRET = "the prompt of a client"
try:
    try:
        {}[SECRET]
    except KeyError:
        raise ValueError(SECRET)
except ValueError:
    log.exception("failed")
def fail(*_):
    raise ValueError(SECRET)
async def leave():
    loop = asyncio.get_running_loop()
    loop.call_soon(fail, SECRET)
    task = loop.create_task(asyncio.sleep(0, SECRET), name=SECRET)
    task.add_done_callback(fail)
    forgotten = loop.create_future()
    forgotten.set_exception(ValueError(SECRET))
    del forgotten
    await asyncio.sleep(0.01)
asyncio.run(leave())
class Falls:
    def __del__(self):
        fail()
Falls()
warnings.warn_explicit(f"{object()} is odd", UserWarning, "/usr/lib/python/odd.py", 7)
logging.getLogger("uvicorn.error").error("lost ('127.0.0.1', 5) <Transport object at 0x7f00>")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def logged(log_format: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", CODE, log_format], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stdout == ""
    return result.stderr


def test_json_lines_are_one_object_a_line() -> None:
    first, second, *_ = (json.loads(line) for line in logged("json").splitlines())
    assert first["message"] == "two\nlines: ä"
    assert (first["level"], first["process"]) == ("info", "engine 0")
    assert second["message"] == "failed"
    assert second["traceback"] == (
        "  __main__, line 11, in <module>\nKeyError\nwhich led to:\n"
        "  __main__, line 13, in <module>\nValueError"
    )


def test_text_names_the_process() -> None:
    first, *_ = logged("text").splitlines()
    assert first.endswith("engine 0    two")


def test_no_form_quotes() -> None:
    for log_format in ("text", "json"):
        text = logged(log_format)
        for secret in (SECRET, "0x7", "127.0.0.1", "/usr", '.py", line', "Traceback"):
            assert secret not in text, text


def test_what_is_left_tells_where_it_arose() -> None:
    """One line or more of everything that went wrong above."""
    text = logged("text")
    assert text.count("  __main__, line 17, in fail\nValueError") == 5
    for words in (
        "asyncio: Exception in callback fail\n",
        "asyncio: Future exception was never retrieved\n",
        "an exception that cannot be raised: ValueError\n",
        "odd.py:7: UserWarning: <object object at 0x> is odd\n",
        "uvicorn.error: lost\n",
        "a thread ends: ValueError\n",
        "the process ends: ValueError\n",
    ):
        assert words in text, text
