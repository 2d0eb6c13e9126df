"""`trellis up` and `down` on real parts: ready, private, nothing left, engines outlive a kill."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.supervisor_folders import make_directory, private_dir
from console.supervisor_plan import Federation, Paths, from_json
from console.supervisor_process import Process, living, process_of, read_processes
from console.supervisor_record import decide, write_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TRELLIS = str(Path(sys.executable).with_name("trellis"))
UP_TIMEOUT_S = 90
DOWN_TIMEOUT_S = 90
RESTART_TIMEOUT_S = 30
ANSWER_TIMEOUT_S = 60


class Folder:
    """A federation's folder and the command line on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = Paths(directory.resolve(), os.getuid())

    def run(self, *words: str, timeout_s: float = UP_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
        return subprocess.run(
            [TRELLIS, *words, "--dir", str(self.directory)],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self, *words: str) -> dict[str, Any]:
        done = self.run("up", "--detach", "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def down(self) -> None:
        done = self.run("down", timeout_s=DOWN_TIMEOUT_S)
        assert done.returncode == 0, done.stderr

    @property
    def record(self) -> Federation:
        return from_json(self.paths.record.read_text(encoding="utf-8"))

    def write_record(self, *hosts: str) -> None:
        """Make what an earlier `up` left, without the time that it takes."""
        make_directory(self.directory)
        private_dir(self.paths.run)
        write_record(decide(None, hosts, {}), self.paths)

    def supervisor(self) -> Process:
        pid, start_ticks = self.paths.lock.read_text().split()
        return Process(int(pid), int(start_ticks))

    def processes(self) -> dict[str, Process]:
        return read_processes(self.paths.children) | read_processes(self.paths.engines)


def processes_of(directory: Path) -> list[int]:
    """Every process whose command line or environment names the folder."""
    needle, found = os.fsencode(directory), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if needle in text:
                found.append(int(entry.name))
    return found


def listeners(pids: set[int]) -> list[tuple[str, int]]:
    """Addresses that these processes listen on over TCP."""
    inodes = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.append((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


def wait_until(true: Any, timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "federation")
    yield made
    if made.paths.record.exists():
        made.run("down", timeout_s=DOWN_TIMEOUT_S)
    left = processes_of(made.directory)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind"


def test_a_federation_comes_up_private_and_goes_without_a_trace(folder: Folder) -> None:
    known = folder.up("--advertise", "HOST_B=127.0.0.1:19999")
    assert [one["host"] for one in known["hosts"]] == ["host_a", "host_b"]

    advertised = 'advertise = "127.0.0.1:19999"'
    assert advertised in folder.paths.settings("host_b").read_text()
    assert advertised not in folder.paths.settings("host_a").read_text()

    everything = folder.processes()
    assert {"rabbitmq", "redis", "epmd", "mail_sink", "notifier", "flower"} <= set(everything)
    assert {"engine-host_a", "engine-host_b", "beans-host_a", "beans-host_b"} <= set(everything)
    assert living(everything) == everything

    addresses = listeners(
        set(processes_of(folder.directory)) | {p.pid for p in everything.values()}
    )
    assert len(addresses) >= 7, "RabbitMQ's four ports, mail sink, Flower, two links"
    assert {address for address, _ in addresses} <= {"127.0.0.1", "::1"}

    for path in (folder.paths.record, folder.paths.settings("host_a"), folder.paths.engines):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (
        folder.paths.run,
        folder.paths.log,
        folder.paths.broker,
        folder.paths.host("host_a"),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    secrets = [*folder.record.passwords.values(), folder.record.redis_password]
    secrets += [folder.record.link_secret, folder.record.flower_password]
    for process in everything.values():
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert not [secret for secret in secrets if secret in command], command

    done = folder.run("up", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith("error: already_up: ")
    assert len(done.stderr.splitlines()) == 1
    assert living(everything) == everything, "the second up must not harm the first"

    folder.down()
    assert not living(everything)
    assert processes_of(folder.directory) == []
    again = folder.run("down")
    assert again.returncode == 0, "taking down what is down changes nothing"


def test_after_a_killed_supervisor_engines_go_on_and_are_adopted(folder: Folder) -> None:
    folder.up()
    engines = read_processes(folder.paths.engines)
    managers = read_processes(folder.paths.children)
    folder.supervisor().signal(signal.SIGKILL)
    wait_until(lambda: not living(managers), 20, "managers die with their supervisor")
    assert living(engines) == engines

    folder.up()
    assert read_processes(folder.paths.engines) == engines, "the same engines, not new ones"
    assert living(engines) == engines

    folder.supervisor().signal(signal.SIGKILL)
    folder.down()
    assert not living(engines)


def test_in_the_foreground_dead_children_are_started_again_and_ctrl_c_is_down(
    folder: Folder,
) -> None:
    command = [TRELLIS, "up", "--dir", str(folder.directory), "--host", "only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "is up" in process.stdout.readline()
        before = folder.processes()
        names = ("redis", "beans-only", "engine-only", "rabbitmq", "notifier")
        for name in names:
            before[name].signal(signal.SIGKILL)

        def restarted() -> bool:
            now = living(folder.processes())
            return all(name in now and now[name] != before[name] for name in (*names, "epmd"))

        wait_until(restarted, RESTART_TIMEOUT_S, "every killed child is there again")
        wait_until(lambda: lists_volumes(folder), ANSWER_TIMEOUT_S, "a bean answers again")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(DOWN_TIMEOUT_S) == 0
    assert processes_of(folder.directory) == []


def lists_volumes(folder: Folder) -> bool:
    environ = {**os.environ, "TRELLIS_DIR": str(folder.directory)}
    asked = subprocess.run(
        [TRELLIS, "volume", "list", "--json"],
        env=environ,
        capture_output=True,
        timeout=ANSWER_TIMEOUT_S,
        check=False,
    )
    return asked.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_broker_starts_is_down_too(
    folder: Folder, number: signal.Signals
) -> None:
    command = [TRELLIS, "up", "--dir", str(folder.directory), "--host", "only"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        wait_until(folder.paths.children.exists, 30, "the first child")
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(DOWN_TIMEOUT_S) == 0
    assert processes_of(folder.directory) == []


def test_a_taken_link_port_is_one_sentence_and_leaves_nothing(folder: Folder) -> None:
    folder.write_record("only")
    port = int(folder.record.links["only"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        done = folder.run("up", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: port_taken: The link of only needs 127.0.0.1:{port}")
    assert len(done.stderr.splitlines()) == 1
    assert processes_of(folder.directory) == []


def test_a_damaged_record_is_one_sentence_and_is_kept(folder: Folder) -> None:
    folder.write_record("only")
    folder.paths.record.write_text('{"version": 1, "hosts": ["only"]}')
    done = folder.run("up", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith("error: federation_damaged: ")
    assert processes_of(folder.directory) == []
    folder.paths.record.unlink()


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk")
@pytest.mark.parametrize("words", [["--detach"], []])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, words: list[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "small", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with (small / "filler").open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while filler.write(b"x" * 4096):
                    pass
        folder = Folder(small / "federation")
        done = folder.run("up", *words)
        assert done.returncode == 1
        assert done.stderr.startswith("error: disk_full: ")
        assert len(done.stderr.splitlines()) == 1
        assert processes_of(folder.directory) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_advertise_for_an_unknown_host_is_wrong_usage(folder: Folder) -> None:
    done = folder.run("up", "--detach", "--host", "only", "--advertise", "other=127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: advertise_unknown: ")
    assert processes_of(folder.directory) == []


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = Folder(file).run("up", "--detach")
    assert done.returncode == 1
    assert done.stderr.startswith("error: folder_unusable: ")


def test_down_without_a_federation_says_so(folder: Folder) -> None:
    done = folder.run("down")
    assert done.returncode == 3
    assert done.stderr.startswith("error: no_federation_here: ")


def test_a_process_that_has_a_recorded_id_by_chance_is_left_alone(folder: Folder) -> None:
    folder.write_record("only")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        mine = process_of(stranger.pid)
        assert mine is not None
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pairs = {"engine-only": [mine.pid, mine.start_ticks - 1]}
        folder.paths.engines.write_text(json.dumps({"boot_id": boot_id, "processes": pairs}))
        folder.down()
        assert stranger.poll() is None
        stranger.kill()
