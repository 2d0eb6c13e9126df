"""The control socket: one JSON document per line each way, one request at a time a connection."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from facade.contract.errors import TrellisError, error_to_wire
from facade.engine.acceptor import Acceptor
from facade.engine.control_errors import EngineFault, RequestRefused

log = logging.getLogger("trellis.control")

LINE_BYTES_MAX: Final = 1 << 20
CONNECTIONS_MAX: Final = 128
REQUEST_TIMEOUT_S: Final = 120.0  # a connection that sends nothing for so long is closed

Method = Callable[..., Any]


class ControlServer:
    """Answers requests on a Unix socket (mode 0600) with the methods it is given."""

    def __init__(self, path: Path, methods: dict[str, Method]) -> None:
        """Bind at once; a socket file that nobody listens on is replaced. Raises OSError."""
        self.path = path
        self.methods = methods
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(CONNECTIONS_MAX)
        except BaseException:
            listener.close()
            raise
        self._acceptor = Acceptor(listener, "control", CONNECTIONS_MAX, self._serve)

    def start(self) -> None:
        """Begin to answer."""
        self._acceptor.start()

    def stop(self) -> None:
        """Answer no more."""
        self._acceptor.stop()
        self.path.unlink(missing_ok=True)

    def _serve(self, connection: socket.socket, _peer: str) -> None:
        try:
            connection.settimeout(REQUEST_TIMEOUT_S)
            with connection, connection.makefile("rb") as lines:
                while line := lines.readline(LINE_BYTES_MAX):
                    connection.sendall(self.answer(line))
        except OSError as error:
            log.debug("control connection: %s", error)

    def answer(self, line: bytes) -> bytes:
        """Return the answer to one request line."""
        number: Any = None
        try:
            request = _parse(line)
            number = request.get("id")
            document = {"id": number, "result": self._call(request)}
        except TrellisError as error:
            document = {"id": number, "error": error_to_wire(error)}
        except Exception as error:
            log.exception("request %s", line[:200])
            fault = EngineFault(reason=f"{type(error).__name__}: {error}")
            document = {"id": number, "error": error_to_wire(fault)}
        return json.dumps(document).encode() + b"\n"

    def _call(self, request: dict[str, Any]) -> Any:
        name, params = request.get("method"), request.get("params") or {}
        method = self.methods.get(name) if isinstance(name, str) else None
        if method is None:
            raise RequestRefused(reason=f"there is no method {name}")
        if not isinstance(params, dict):
            raise RequestRefused(reason="params is not an object")
        try:
            return method(**params)
        except TypeError as error:
            raise RequestRefused(reason=f"{name}: {error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) >= LINE_BYTES_MAX or not line.endswith(b"\n"):
        raise RequestRefused(reason=f"a request is one line of less than {LINE_BYTES_MAX} bytes")
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(reason="it is not JSON") from error
    if not isinstance(request, dict):
        raise RequestRefused(reason="it is not a JSON object")
    return request
