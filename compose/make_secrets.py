#!/usr/bin/env python3
"""Makes the secrets of the compose file: random passwords, addresses with them, RabbitMQ's users.

    python3 compose/make_secrets.py [--dir compose/secrets] [--domain trellis] [--replace]

Needs Python alone, no virtual environment. A folder that is there is left as it is, unless
`--replace` says that new secrets are wanted.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from broker.definitions import NOTIFIER_USER, OPS_USER, definitions  # noqa: E402

HOSTS = ("host_a", "host_b")
SECRET_BYTES = 24
BROKER = "rabbitmq:5672"
MANAGEMENT = "rabbitmq:15672"
REDIS = "redis:6379"
FLOWER_USER = "ops"
# The containers' users differ from ours and must read these files, so it is the folder that keeps
# others out: a file mounted into a container is reached without passing through it.
DIR_MODE = 0o700
FILE_MODE = 0o444


def make(domain: str) -> dict[str, str]:
    """Return the text of every secret by the name of its file."""
    users = (*HOSTS, NOTIFIER_USER, OPS_USER)
    passwords = {user: secrets.token_urlsafe(SECRET_BYTES) for user in users}
    urls = {user: f"amqp://{user}:{passwords[user]}@{BROKER}" for user in users}
    redis, flower = secrets.token_urlsafe(SECRET_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    management = f"http://{OPS_USER}:{passwords[OPS_USER]}@{MANAGEMENT}/api/{domain}"
    return {
        "definitions": json.dumps(definitions(domain, HOSTS, passwords), indent=1),
        "link_secret": secrets.token_urlsafe(SECRET_BYTES),
        "redis_password": redis,
        "redis_conf": (
            f'requirepass "{redis}"\nsave ""\nappendonly no\n'
            "maxmemory 256mb\nmaxmemory-policy volatile-ttl\n"
        ),
        "redis_url": f"redis://:{redis}@{REDIS}/0",
        "flower_conf": (f'basic_auth = ["{FLOWER_USER}:{flower}"]\nbroker_api = "{management}"\n'),
        "ops_broker_urls": urls[OPS_USER],
        "notifier_broker_urls": urls[NOTIFIER_USER],
        **{f"{host}_broker_urls": urls[host] for host in HOSTS},
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the files; returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the secrets of the compose file.")
    parser.add_argument("--dir", type=Path, default=ROOT / "compose/secrets")
    parser.add_argument("--domain", default="trellis")
    parser.add_argument("--replace", action="store_true", help="new secrets in place of the old")
    given = parser.parse_args(arguments)
    folder: Path = given.dir
    if folder.exists() and any(folder.iterdir()) and not given.replace:
        print(f"{folder} has secrets already; --replace makes new ones", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(DIR_MODE)
    for name, text in make(given.domain).items():
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        path.chmod(FILE_MODE)
    print(f"wrote {folder}; Flower's login is in {folder / 'flower_conf'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
