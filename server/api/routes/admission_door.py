"""In front of the router, for completions: who asks, how long he may wait, and whether he is refused at once.

What is refused under overload must cost little: here it is a third of what it is behind the router.
"""

from __future__ import annotations

import time
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.admission.admission import Admission, Applicant
from server.api.http.errors import request_error_response
from server.api.http.limit_headers import STANDINGS
from server.api.http.request_log import KEY_NAME, note_error
from server.api.http.request_timeout import request_timeout_s
from server.errors import RequestError

APPLICANT = "continuo.applicant"  # in the ASGI scope
_PATH = "/v1/completions"


class AdmissionDoor:
    """Pure ASGI. A request with an Idempotency-Key is let through: it may be a repeat, which is refused by no
    limit; the route asks for it when it knows."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == _PATH and scope["method"] == "POST":
            try:
                self._let_in(scope)
            except RequestError as error:
                note_error(scope, error.status, error.code)
                await request_error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> None:
        """Before its body is read. Raises RequestError."""
        tenant = scope.get(KEY_NAME, "")
        if tenant:
            scope[STANDINGS] = partial(self._admission.standings, tenant)
        timeouts: list[str] = []
        may_be_repeat = False
        for name, value in scope["headers"]:
            if name == b"x-request-timeout":
                timeouts.append(value.decode("latin-1"))
            elif name == b"idempotency-key":
                may_be_repeat = True
        wanted_s = request_timeout_s(timeouts)
        longest_s = self._admission.max_queue_s
        max_wait_s = longest_s if wanted_s is None else min(longest_s, wanted_s)
        who = Applicant(tenant, time.monotonic(), max_wait_s, is_hurried=wanted_s is not None)
        scope[APPLICANT] = who
        if not may_be_repeat:
            self._admission.check(who)
