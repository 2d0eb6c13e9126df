"""Structured logs: one JSON object a line on standard error, with the task's id if there is one."""

import json
import logging
import sys
from datetime import UTC, datetime

from beans.base import current_call

MESSAGE_LIMIT_CHARACTERS = 8_000
QUIET = {
    "celery.worker.strategy": logging.WARNING,
    "celery.app.trace": logging.WARNING,
    "amqp": logging.ERROR,
}
"""Loggers that say something for every message, with its values."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object."""

    def __init__(self, worker: str) -> None:
        """Take the worker's name, which every line carries."""
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "worker": self._worker,
            "logger": record.name,
            "text": record.getMessage()[:MESSAGE_LIMIT_CHARACTERS],
        }
        call = current_call()
        if call is not None:
            line |= {"task_id": call.call_id, "method": call.method, "caller": call.caller}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MESSAGE_LIMIT_CHARACTERS:]
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr(worker: str, level: int = logging.INFO) -> None:
    """Send every log of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet_level in QUIET.items():
        logging.getLogger(name).setLevel(quiet_level)
