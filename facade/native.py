"""The way to the engine: its control socket, one JSON document per line each way."""

import itertools
import json
import socket
import time
from pathlib import Path
from typing import Any, Final

from facade.contract.errors import TrellisError, error_from_wire
from facade.contract.settings import Settings
from facade.errors import EngineGone, EngineSilent, EngineUnreachable, ProtocolBroken

LINE_BYTES_MAX: Final = 1 << 20
"""Longest request or answer."""

CALL_TIMEOUT_S: Final = 10.0
"""How long an answer may take unless the call says otherwise."""

SOCKET_NAME: Final = "engine.sock"

_READ_BYTES: Final = 64 * 1024


class EngineClient:
    """Calls of the engine of this host; threads may share one.

    Each call has a connection of its own, so a restarted engine is found again by itself.
    """

    def __init__(self, where: Settings | Path) -> None:
        """Take the settings, or the host's run folder."""
        named = isinstance(where, Settings) and where.host.name
        self.host = named or "this host"
        folder = where.host.run_dir if isinstance(where, Settings) else where
        self.socket_path = folder / SOCKET_NAME
        self._ids = itertools.count(1)

    def call(self, method: str, timeout_s: float = CALL_TIMEOUT_S, **params: Any) -> Any:
        """Return the engine's answer.

        Raises the engine's own error as its class; EngineUnreachable when nobody answers on the
        socket (nothing was done); EngineGone or EngineSilent when the request was sent and its
        outcome is not known; ProtocolBroken for an answer that is none.
        """
        number = next(self._ids)
        request = {"id": number, "method": method, "params": params}
        raw = json.dumps(request, ensure_ascii=False).encode() + b"\n"
        if len(raw) > LINE_BYTES_MAX:
            raise ProtocolBroken(method=method, reason=f"the request has {len(raw)} bytes")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            self._connect(connection, timeout_s)
            line = self._exchange(connection, raw, method, timeout_s)
        return _result(line, number, method)

    def _connect(self, connection: socket.socket, timeout_s: float) -> None:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.socket_path))
        except OSError as error:
            raise EngineUnreachable(host=self.host, socket=str(self.socket_path)) from error

    def _exchange(
        self, connection: socket.socket, raw: bytes, method: str, timeout_s: float
    ) -> bytes:
        deadline = time.monotonic() + timeout_s
        answer = bytearray()
        try:
            connection.sendall(raw)
            while not answer.endswith(b"\n"):
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise EngineSilent(host=self.host, method=method, timeout_s=timeout_s)
                connection.settimeout(left_s)
                piece = connection.recv(_READ_BYTES)
                if not piece:
                    raise EngineGone(host=self.host, method=method)
                answer += piece
                if len(answer) > LINE_BYTES_MAX:
                    raise ProtocolBroken(method=method, reason="it is too long")
        except TimeoutError as error:
            raise EngineSilent(host=self.host, method=method, timeout_s=timeout_s) from error
        except OSError as error:
            raise EngineGone(host=self.host, method=method) from error
        return bytes(answer)


def _result(line: bytes, number: int, method: str) -> Any:
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ProtocolBroken(method=method, reason="it is not JSON") from error
    if not isinstance(answer, dict) or answer.get("id") != number:
        raise ProtocolBroken(method=method, reason="it answers another request")
    if isinstance(answer.get("error"), dict):
        failure: TrellisError = error_from_wire(answer["error"])
        raise failure
    if "result" not in answer:
        raise ProtocolBroken(method=method, reason="it has no result")
    return answer["result"]
