"""The stations' shared cache in Redis: handles and when each was last seen.

It only helps: a station that was just started, and a caller whose station does not answer, know
from it when a bean was last seen, at most `NOTED_EVERY_S` too early. Losing it, or Redis, loses
nothing that the next announcements do not bring back.
"""

import json
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import redis

from facade.contract.events import now
from facade.contract.settings import Settings

if TYPE_CHECKING:
    from broker.lookup import Handle

log = logging.getLogger(__name__)

ENTRY_EXPIRES_S = 7 * 24 * 3600
TIMEOUT_S = 1.0
NOTED_EVERY_S = 10.0
"""How often a station notes that the beans of its own host are still there."""


class SharedCache:
    """Best effort: every failure is logged and taken as not known."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet."""
        self._prefix = f"trellis:{settings.host.domain}:handle"
        self._redis: Any = redis.Redis.from_url(
            client_url(settings.redis.url),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            decode_responses=True,
        )

    def put(self, handle: "Handle", *, alive: bool) -> None:
        """Note a bean that came, is there, or left, at this time."""
        entry = {"handle": handle.to_wire(), "alive": alive, "seen": now()}
        try:
            self._redis.set(self._key(handle.host, handle.bean), json.dumps(entry), ENTRY_EXPIRES_S)
        except (redis.RedisError, OSError) as error:
            log.warning("the shared cache of handles cannot be written: %s", error)

    def last_seen(self, host: str, bean: str) -> str | None:
        """Give when any station last noted the bean."""
        try:
            text = self._redis.get(self._key(host, bean))
            return str(json.loads(text)["seen"]) if text else None
        except (redis.RedisError, OSError, ValueError, KeyError, TypeError) as error:
            log.info("the shared cache of handles cannot be read: %s", error)
            return None

    def _key(self, host: str, bean: str) -> str:
        return f"{self._prefix}:{host}:{bean}"


def client_url(url: str) -> str:
    """Turn Celery's `redis+socket://PATH?virtual_host=N&password=P` into redis-py's form."""
    parts = urlsplit(url)
    if parts.scheme not in ("redis+socket", "socket"):
        return url
    query = parse_qs(parts.query)
    database = query.get("virtual_host", ["0"])[0]
    password = query.get("password", [""])[0]
    login = f":{quote(password, safe='')}@" if password else ""
    return f"unix://{login}{parts.path}?db={database}"
