"""How a bean's answer or error travels as a Celery result."""

import json
from typing import Any

from facade.contract.errors import RemoteError, TrellisError, error_from_wire, error_to_wire

TEXT_LIMIT_CHARACTERS = 2000


class CallFailed(Exception):
    """What a task raises: its only argument is the wire form of a TrellisError.

    Celery stores class name and arguments as JSON; Flower shows the task as failed with them.
    """

    def wire(self) -> dict[str, Any]:
        """Give the wire form, a malformed one as a RemoteError's."""
        document = self.args[0] if self.args else None
        if isinstance(document, dict):
            return document
        text = repr(self.args)[:TEXT_LIMIT_CHARACTERS]
        return error_to_wire(RemoteError("remote_error", f"an error without form: {text}"))


def to_call_failed(error: TrellisError) -> CallFailed:
    """Make the exception to raise in a task; what is no JSON in the fields becomes text."""
    return CallFailed(json.loads(json.dumps(error_to_wire(error), default=str)))


def from_result(result: Any) -> TrellisError:
    """Make the typed error of a failed task's result, whatever it is.

    A result comes out of Redis, so it is only looked at, never raised: it may claim to be a
    SystemExit.
    """
    if isinstance(result, CallFailed) or type(result).__name__ == CallFailed.__name__:
        wire = CallFailed(*result.args).wire()
        return error_from_wire(wire)
    text = str(result)[:TEXT_LIMIT_CHARACTERS] or "no text"
    return RemoteError(
        "remote_error",
        f"The bean's worker failed: {type(result).__name__}: {text}",
        "Look into the log of trellis-beans on that host.",
    )
