"""What a private RabbitMQ and Redis need: commands, environment and files, computed without I/O.

Everything is bound to the loopback. RabbitMQ's own start script is run directly, because the
wrapper on the path changes the user; and epmd is a child of ours, because the one that RabbitMQ
starts by itself outlives it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
NODE_NAME = "trellis@localhost"
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
MEMORY_LIMIT_MB = 512
DISK_FREE_LIMIT_MB = 100
CONSUMER_TIMEOUT_MS = 86_400_000
MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024
REDIS_MEMORY_LIMIT_MB = 256
SOCKET_PATH_LIMIT_BYTES = 100
# Schedulers that sleep instead of spinning, and no more of them than a small machine has.
ERLANG_FLAGS = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
ERL_CALL_TIMEOUT_S = 2
DROP_STATISTICS = "gen_event delete_handler [rabbit_event, rabbit_mgmt_db_handler, stop]"
LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"


@dataclass(frozen=True)
class BrokerPorts:
    """The four loopback ports of an embedded broker."""

    amqp: int
    management: int
    distribution: int
    epmd: int

    def by_purpose(self) -> dict[str, int]:
        """Each port under the words that an error message uses for it."""
        return {
            "AMQP": self.amqp,
            "management": self.management,
            "Erlang distribution": self.distribution,
            "epmd": self.epmd,
        }


@dataclass(frozen=True)
class PlannedFile:
    """A file to write before the start; replaced whole."""

    path: Path
    text: str
    mode: int = 0o600


@dataclass(frozen=True)
class PlannedProcess:
    """A program to run; `stdin_text` goes to its standard input when it is not None."""

    argv: tuple[str, ...]
    env: dict[str, str]
    stdin_text: str | None = None


@dataclass(frozen=True)
class BrokerPlan:
    """Everything the acting part needs to start epmd and RabbitMQ."""

    folders: tuple[Path, ...]
    files: tuple[PlannedFile, ...]
    epmd: PlannedProcess
    epmd_stop: PlannedProcess
    server: PlannedProcess
    prepare_stop: PlannedProcess
    """Takes the management plugin's statistics out of the running node.

    Left to RabbitMQ's own stop, they ask the one that is stopping them, and wait 5 s in vain.
    """


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would steer RabbitMQ or Erlang from outside."""
    prefixes = ("RABBITMQ_", "ERL_", "ERLANG_")
    return {key: value for key, value in environ.items() if not key.startswith(prefixes)}


def plan(
    base_dir: Path,
    ports: BrokerPorts,
    definitions: Mapping[str, Any],
    cookie: str,
    environ: Mapping[str, str] | None = None,
    erl_call: str = "erl_call",
) -> BrokerPlan:
    """Compute how to run a broker whose whole life is in `base_dir`.

    `definitions` is RabbitMQ's definitions document (users, vhosts, permissions, exchanges,
    queues); it is imported before the listeners open. `cookie` is the Erlang cookie, `erl_call` the
    program of Erlang that calls a function in a node.
    """
    clean = clean_environment(os.environ if environ is None else environ)
    epmd_env = {**clean, "HOME": str(base_dir / "home")}
    return BrokerPlan(
        folders=(base_dir, base_dir / "home", base_dir / "mnesia", base_dir / "generated"),
        files=(
            PlannedFile(base_dir / "home" / ".erlang.cookie", cookie, 0o400),
            PlannedFile(base_dir / "rabbitmq.conf", server_config(base_dir, ports)),
            PlannedFile(base_dir / "advanced.config", "[].\n"),
            PlannedFile(base_dir / "enabled_plugins", "[rabbitmq_management].\n"),
            PlannedFile(base_dir / "definitions.json", json.dumps(definitions, indent=1)),
        ),
        epmd=PlannedProcess(
            ("epmd", "-port", str(ports.epmd), "-address", LOOPBACK),
            epmd_env,
        ),
        epmd_stop=PlannedProcess(("epmd", "-port", str(ports.epmd), "-kill"), epmd_env),
        server=PlannedProcess(
            (str(RABBITMQ_SERVER),), {**clean, **server_environment(base_dir, ports)}
        ),
        prepare_stop=PlannedProcess(
            (erl_call, "-n", NODE_NAME, "-timeout", str(ERL_CALL_TIMEOUT_S), "-a", DROP_STATISTICS),
            {**epmd_env, "ERL_EPMD_PORT": str(ports.epmd)},
        ),
    )


def server_config(base_dir: Path, ports: BrokerPorts) -> str:
    """The text of rabbitmq.conf: loopback listeners, limits, definitions."""
    lines = [
        f"listeners.tcp.default = {LOOPBACK}:{ports.amqp}",
        f"management.tcp.ip = {LOOPBACK}",
        f"management.tcp.port = {ports.management}",
        f"load_definitions = {base_dir / 'definitions.json'}",
        "log.file = false",
        "log.console = true",
        "log.console.level = info",
        f"vm_memory_high_watermark.absolute = {MEMORY_LIMIT_MB}MB",
        f"disk_free_limit.absolute = {DISK_FREE_LIMIT_MB}MB",
        f"consumer_timeout = {CONSUMER_TIMEOUT_MS}",
        f"max_message_size = {MESSAGE_LIMIT_BYTES}",
    ]
    return "\n".join(lines) + "\n"


def server_environment(base_dir: Path, ports: BrokerPorts) -> dict[str, str]:
    """The variables that keep RabbitMQ inside `base_dir` and make its process our child."""
    return {
        "HOME": str(base_dir / "home"),
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": NODE_NAME,
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(ports.amqp),
        "RABBITMQ_DIST_PORT": str(ports.distribution),
        "ERL_EPMD_PORT": str(ports.epmd),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        # A file that is not there, or the machine's own settings would be read.
        "RABBITMQ_CONF_ENV_FILE": str(base_dir / "no-environment-file"),
        "RABBITMQ_CONFIG_FILE": str(base_dir / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(base_dir / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(base_dir / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(base_dir / "mnesia"),
        "RABBITMQ_LOG_BASE": str(base_dir),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_GENERATED_CONFIG_DIR": str(base_dir / "generated"),
        "RABBITMQ_SCHEMA_DIR": str(base_dir / "generated"),
        "RABBITMQ_PID_FILE": str(base_dir / "rabbitmq.pid"),
        # With both of these the script execs Erlang, so that our child is the node itself.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": "-noinput",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{ERLANG_FLAGS} {LOOPBACK_ONLY}",
    }


def redis_plan(
    base_dir: Path,
    socket_path: Path,
    password: str,
    environ: Mapping[str, str] | None = None,
) -> PlannedProcess:
    """Compute how to run a Redis that has no TCP port and keeps nothing on disk.

    Its configuration goes through standard input, so that the password is in no file or command
    line. Results expire by themselves; past the memory limit those next to expire go first.
    """
    lines = [
        "port 0",
        f'unixsocket "{socket_path}"',
        "unixsocketperm 700",
        f'requirepass "{password}"',
        f'dir "{base_dir}"',
        'save ""',
        "appendonly no",
        "daemonize no",
        f"maxmemory {REDIS_MEMORY_LIMIT_MB}mb",
        "maxmemory-policy volatile-ttl",
    ]
    env = dict(os.environ if environ is None else environ)
    return PlannedProcess(("redis-server", "-"), env, "\n".join(lines) + "\n")
