"""What no line of a server's log and no error that it sends may hold. Every server that the tests start is
held to it at its end, and every error that comes through their clients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import httpx

_ROOTS = "|".join(map(re.escape, sorted(os.listdir("/"))))
_LEAKS = {
    "a path": re.compile(rf"(?<![\w./-])/(?:{_ROOTS})(?=/)[^\s'\"]*"),
    "a source file": re.compile(r"\S+/\S+\.py\b"),
    "a traceback": re.compile(r"Traceback|File \"|most recent call"),
    "the address of an object": re.compile(r"0x[0-9a-fA-F]{4,}|<[\w. ]+ object\b"),
    "the address of a host": re.compile(
        r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])|\[[0-9a-f:]*::[0-9a-f:]*\]"
    ),
    "a key": re.compile(r"sk-[\w-]{16,}|Bearer (?!YOUR_KEY|KEY)\S+"),
}


def leaks_in(text: str, allowed: Iterable[str] = ()) -> list[str]:
    """`allowed`: what the operator has said himself."""
    for each in sorted(filter(None, allowed), key=len, reverse=True):
        text = text.replace(each, "...")
    return [
        f"{what}: {found.group()!r} in {_line_of(text, found.start())!r}"
        for what, pattern in _LEAKS.items()
        for found in pattern.finditer(text)
    ]


def check_error(response: httpx.Response) -> None:
    """A hook of httpx clients."""
    if response.status_code >= 400:
        response.read()
        assert leaks_in(response.text) == []


def _line_of(text: str, at: int) -> str:
    return text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]
