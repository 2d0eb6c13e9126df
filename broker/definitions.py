"""RabbitMQ's definitions document of one domain: users, narrow permissions, exchanges.

The embedded broker and compose/ load the same document. A host's user has the host's name; other
users have a dot in theirs, which no host has. A host

* declares, deletes and consumes queues `<host>.*` alone, and its workers' control queues;
* binds them to call and log keys that begin with its own name, and to any lookup or event key;
* publishes calls and queries to any host, tasks to its own jobs queues, announcements, events and
  logs only under its own name;
* declares no exchange, and uses neither the default exchange nor Celery's control exchange.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from broker import topology as t

NOTIFIER_USER = "trellis.notifier"
OPS_USER = "trellis.ops"
"""Flower and whoever looks after the broker."""
SALT_BYTES = 4
NOTHING = "^$"


def definitions(
    domain: str,
    hosts: Iterable[str],
    passwords: Mapping[str, str],
) -> dict[str, Any]:
    """Make the definitions document of a domain.

    `passwords` gives the password of every host, of `NOTIFIER_USER` and of `OPS_USER`. They are
    salted afresh each time, so two documents of the same arguments differ in their hashes.

    Raises:
        KeyError: when a password is missing.
    """
    names = sorted(hosts)
    users = [*names, NOTIFIER_USER, OPS_USER]
    permissions = [host_permissions(domain, host) for host in names]
    topics = [row for host in names for row in host_topics(domain, host)]
    topics += notifier_topics(domain)
    return {
        "vhosts": [{"name": domain}],
        "users": [_user(user, passwords[user]) for user in users],
        "permissions": [*permissions, notifier_permissions(domain), ops_permissions(domain)],
        "topic_permissions": topics,
        "exchanges": exchanges(domain),
        "queues": [
            {
                "name": t.DEAD,
                "vhost": domain,
                "durable": True,
                "auto_delete": False,
                "arguments": t.DEAD_QUEUE_ARGUMENTS,
            }
        ],
        "bindings": [
            {
                "source": t.DEAD,
                "vhost": domain,
                "destination": t.DEAD,
                "destination_type": "queue",
                "routing_key": "#",
                "arguments": {},
            }
        ],
    }


def exchanges(domain: str) -> list[dict[str, Any]]:
    """Every exchange of a domain, all durable."""
    kinds = dict.fromkeys(t.EXCHANGES, "topic") | t.CELERY_EXCHANGES
    return [
        {
            "name": name,
            "vhost": domain,
            "type": kind,
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {},
        }
        for name, kind in kinds.items()
    ]


def host_permissions(domain: str, host: str) -> dict[str, Any]:
    """What a host's user may configure, write and read."""
    own = rf"{re.escape(host)}\..*"
    control = rf"{t.BEAN_CHARACTERS}(\.jobs)?@{re.escape(host)}\.celery\.pidbox"
    write = [*t.EXCHANGES, t.TASK_EVENTS, t.CONTROL_REPLY]
    read = [t.BEANS, t.LOOKUP, t.EVENTS, t.LOGS, t.CONTROL]
    return _permission(
        domain,
        host,
        configure=_either([own, control]),
        write=_either([own, control, *map(re.escape, write)]),
        read=_either([own, control, *map(re.escape, read)]),
    )


def host_topics(domain: str, host: str) -> list[dict[str, Any]]:
    """Which routing keys a host's user may publish with (write) and bind to (read)."""
    me, word, bean = re.escape(host), t.HOST_CHARACTERS, t.BEAN_CHARACTERS
    own = rf"^{me}\..*$"
    anything = ".*"
    return [
        _topic(domain, host, t.BEANS, rf"^({word}\.{bean}|{me}\.{bean}\.jobs)$", own),
        _topic(domain, host, t.LOOKUP, rf"^((announce|depart)\.{me}\.{bean}|query\..*)$", anything),
        _topic(domain, host, t.EVENTS, own, anything),
        _topic(domain, host, t.LOGS, own, own),
        _topic(domain, host, t.DEAD, own, NOTHING),
        _topic(domain, host, t.TASK_EVENTS, anything, NOTHING),
    ]


def notifier_permissions(domain: str) -> dict[str, Any]:
    """What the notifier may do: consume events from queues of its own."""
    own = rf"{re.escape(NOTIFIER_USER)}\..*"
    return _permission(
        domain,
        NOTIFIER_USER,
        configure=_either([own]),
        write=_either([own, re.escape(t.DEAD)]),
        read=_either([own, re.escape(t.EVENTS)]),
    )


def notifier_topics(domain: str) -> list[dict[str, Any]]:
    """The notifier binds to any event key."""
    return [_topic(domain, NOTIFIER_USER, t.EVENTS, NOTHING, ".*")]


def ops_permissions(domain: str) -> dict[str, Any]:
    """What Flower needs (task events, control and its replies), and reading what was given up."""
    task_events = rf"{t.TASK_EVENTS}\..*"
    replies = rf".*\.{re.escape(t.CONTROL_REPLY)}"
    own = rf"{re.escape(OPS_USER)}\..*"
    return _permission(
        domain,
        OPS_USER,
        configure=_either([task_events, replies, own]),
        write=_either([task_events, replies, own, re.escape(t.CONTROL)]),
        read=_either(
            [task_events, replies, own]
            + [re.escape(n) for n in (t.TASK_EVENTS, t.CONTROL_REPLY, t.DEAD, t.EVENTS, t.LOGS)]
        ),
    )


def password_hash(password: str) -> str:
    """RabbitMQ's salted SHA-256 form of a password."""
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.sha256(salt + password.encode()).digest()
    return base64.b64encode(salt + digest).decode()


def _user(name: str, password: str) -> dict[str, Any]:
    return {
        "name": name,
        "password_hash": password_hash(password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["monitoring"] if name == OPS_USER else [],
        "limits": {},
    }


def _permission(domain: str, user: str, *, configure: str, write: str, read: str) -> dict[str, Any]:
    return {"user": user, "vhost": domain, "configure": configure, "write": write, "read": read}


def _topic(domain: str, user: str, exchange: str, write: str, read: str) -> dict[str, Any]:
    return {"user": user, "vhost": domain, "exchange": exchange, "write": write, "read": read}


def _either(patterns: list[str]) -> str:
    return f"^({'|'.join(patterns)})$"
