"""The embedded servers' plan, and a Redis that really runs."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker, EmbeddedRedis, free_ports, port_is_free
from broker.embedded_errors import (
    ServerDied,
    ServerFolderUnusable,
    ServerPathTooLong,
    ServerPortTaken,
)
from broker.embedded_plan import BrokerPorts, plan
from broker.embedded_process import ChildProcess, rotate

PORTS = BrokerPorts(amqp=1001, management=1002, distribution=1003, epmd=1004)
BASE = Path("/base")


def test_inherited_variables_do_not_steer_the_broker() -> None:
    environ = {"RABBITMQ_NODENAME": "x", "ERL_FLAGS": "y", "PATH": "/bin", "HOME": "/root"}
    planned = plan(BASE, PORTS, {}, "cookie", environ)
    for process in (planned.epmd, planned.server):
        assert "ERL_FLAGS" not in process.env
        assert process.env["PATH"] == "/bin"
        assert process.env["HOME"] == "/base/home"
    assert planned.server.env["RABBITMQ_NODENAME"] != "x"


def test_everything_is_bound_to_the_loopback() -> None:
    planned = plan(BASE, PORTS, {}, "cookie", {})
    config = next(file.text for file in planned.files if file.path.name == "rabbitmq.conf")
    assert "listeners.tcp.default = 127.0.0.1:1001" in config
    assert "management.tcp.ip = 127.0.0.1" in config
    assert "{127,0,0,1}" in planned.server.env["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert planned.epmd.argv == ("epmd", "-port", "1004", "-address", "127.0.0.1")


def test_all_it_writes_is_in_its_folder_and_private() -> None:
    planned = plan(BASE, PORTS, {"users": []}, "cookie", {})
    for file in planned.files:
        assert file.path.is_relative_to(BASE)
        assert not file.mode & 0o077
    for folder in planned.folders:
        assert folder == BASE or folder.is_relative_to(BASE)
    for name, value in planned.server.env.items():
        if name.startswith("RABBITMQ_") and value.startswith("/"):
            assert Path(value).is_relative_to(BASE), name


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(30)
    assert len(set(ports)) == 30
    assert all(port_is_free(port) for port in ports)


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = BrokerPorts(*free_ports(3), epmd=port)
        broker = EmbeddedBroker(tmp_path / "b", {}, ports=ports)
        with pytest.raises(ServerPortTaken, match=f"{port} \\(epmd\\)"):
            broker.start()
    assert broker.pids == {}
    assert not (tmp_path / "b").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broker = EmbeddedBroker(tmp_path / "file" / "b", {})
    with pytest.raises(ServerFolderUnusable, match="file"):
        broker.start()
    assert not broker.alive()


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path, socket_path=tmp_path / ("x" * 100))
    with pytest.raises(ServerPathTooLong, match="at most 100"):
        redis.start()


def test_redis_takes_its_password_only_and_leaves_nothing(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path)
    redis.start()
    try:
        redis.wait_ready()
        (pid,) = redis.pids.values()
        assert redis.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert stat.S_IMODE(redis.socket_path.stat().st_mode) == 0o700
        stranger = EmbeddedRedis(tmp_path, "wrong", socket_path=redis.socket_path)
        assert not stranger.answers()
    finally:
        redis.stop()
    assert not redis.socket_path.exists()
    assert not redis.alive()


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path, 'p" nonsense')
    redis.start()
    with pytest.raises(ServerDied, match="before it was ready"):
        redis.wait_ready()


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from broker.embedded_process import ChildProcess\n"
        f"child = ChildProcess(['sleep', '60'], os.environ, Path({str(tmp_path / 'log')!r}))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline_s, "the child outlived its parent"
        time.sleep(0.01)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ignore = "trap '' TERM; echo ready; while :; do sleep 1; done"
    child = ChildProcess(["sh", "-c", ignore], os.environ, tmp_path / "log")
    child.start()
    while not (tmp_path / "log").read_text():
        child.wait(0.01)
    assert child.stop(grace_s=0.1) == -9


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 11)
    rotate(log, limit_bytes=10)
    assert not log.exists()
    assert (tmp_path / "x.log.1").stat().st_size == 11
    rotate(log, limit_bytes=10)
