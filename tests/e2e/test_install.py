"""Set-up on a machine: nothing started, an existing policy put back; and, on wish, a bare Debian.

The script that installs packages runs here with an `apt-get` of the test in front of the path, so
that nothing is installed. RUN_INSTALL_TESTS=1 adds the real thing in a throw-away Debian 12.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/install-debian-packages.sh"
FAKE_APT = """#!/bin/bash
echo "$@" >> "{log}"
[ "$1" = install ] || exit 0
"$TRELLIS_POLICY_FILE"; echo "policy $?" >> "{log}"
{then}
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root installs packages")


class Machine:
    """The script with a policy file and an apt-get of its own."""

    def __init__(self, folder: Path) -> None:
        self.policy = folder / "policy-rc.d"
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()

    def start(self, then: str) -> "subprocess.Popen[str]":
        apt = self.bin / "apt-get"
        apt.write_text(FAKE_APT.format(log=self.log, then=then))
        apt.chmod(0o755)
        environ = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "TRELLIS_POLICY_FILE": str(self.policy),
        }
        return subprocess.Popen(
            [str(SCRIPT), "some-package"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, then: str = "exit 0") -> int:
        with self.start(then) as process:
            process.communicate(timeout=60)
            return process.returncode

    def said(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def others(machine: Machine) -> list[str]:
    names = [path.name for path in machine.policy.parent.iterdir()]
    return [name for name in names if name not in ("bin", "log", "policy-rc.d")]


@needs_root
def test_services_are_forbidden_meanwhile_and_no_policy_is_left(machine: Machine) -> None:
    assert machine.run() == 0
    assert "policy 101" in machine.said()
    assert not machine.policy.exists()
    assert others(machine) == []


@needs_root
@pytest.mark.parametrize(("then", "status"), [("exit 0", 0), ("exit 100", 100)])
def test_an_existing_policy_is_put_back(machine: Machine, then: str, status: int) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.policy.chmod(0o711)
    assert machine.run(then) == status
    assert "policy 101" in machine.said()
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert machine.policy.stat().st_mode & 0o777 == 0o711
    assert others(machine) == []


@needs_root
def test_an_existing_link_is_put_back_as_a_link(machine: Machine) -> None:
    machine.policy.symlink_to("/bin/true")
    assert machine.run() == 0
    assert machine.policy.readlink() == Path("/bin/true")


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_puts_the_policy_back(machine: Machine, number: signal.Signals) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.policy.chmod(0o755)
    with machine.start(f'echo waiting >> "{machine.log}"; sleep 1') as process:
        deadline_s = time.monotonic() + 20
        while "waiting" not in machine.said():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 128 + number
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert others(machine) == []


@needs_root
def test_what_a_killed_run_left_is_put_right_by_the_next(machine: Machine) -> None:
    machine.policy.write_text("#!/bin/sh\nexit 0\n")
    machine.policy.chmod(0o755)
    with machine.start(f'echo waiting >> "{machine.log}"; sleep 1') as process:
        deadline_s = time.monotonic() + 20
        while "waiting" not in machine.said():
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)
    assert "exit 101" in machine.policy.read_text()
    assert machine.run() == 0
    assert machine.policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert others(machine) == []


def test_without_root_the_script_says_what_to_type() -> None:
    if os.getuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash"]
    else:
        command = ["bash"]
    done = subprocess.run(
        [*command, "-s", "--", "fio"],
        input=SCRIPT.read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "must be run as root" in done.stderr


@pytest.fixture
def bare_debian(tmp_path: Path) -> Iterator[Path]:
    if os.environ.get("RUN_INSTALL_TESTS") != "1":
        pytest.skip("RUN_INSTALL_TESTS=1 installs into a throw-away Debian (minutes, network)")
    if os.getuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap")
    root = tmp_path / "root"
    include = "--include=python3,gcc,make,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", include, "bookworm", str(root)],
        check=True,
        timeout=1200,
        stdout=subprocess.DEVNULL,
    )
    for name in (
        "etc/resolv.conf",
        "etc/hosts",
        "etc/pip.conf",
        "etc/ssl/certs/ca-certificates.crt",
    ):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), root / name)
    (root / "src").mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    subprocess.run(["tar", "-x", "-C", str(root / "src")], input=archive.stdout, check=True)
    mounts = [root / "dev", root / "proc"]
    try:
        for mount in mounts:
            subprocess.run(["mount", "--bind", f"/{mount.name}", str(mount)], check=True)
        yield root
    finally:
        # Before anything is deleted: what is mounted there is the machine's own.
        for mount in mounts:
            if mount.is_mount():
                subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.install
@pytest.mark.timeout(3600)
def test_a_bare_debian_gets_all_it_needs_and_no_service(bare_debian: Path) -> None:
    def inside(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["chroot", str(bare_debian), "/usr/bin/env", "-i", "HOME=/root", "LANG=C.UTF-8",
             "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
             "bash", "-c", f"cd /src && {command}"],
            capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip

    assert inside("make build").returncode == 0
    done = inside("scripts/setup.sh build run test fuzz")
    assert done.returncode == 0, done.stdout + done.stderr
    running = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "root").readlink() == bare_debian:
                    running.append((entry / "cmdline").read_text())
            except OSError:
                continue
    assert running == []
    enabled = {p.name for p in (bare_debian / "etc/systemd/system").rglob("*.service")}
    enabled |= {p.name for p in (bare_debian / "etc/rc3.d").glob("S*")}
    assert not [n for n in enabled if any(w in n for w in ("rabbitmq", "redis", "epmd"))]
    again = inside("time scripts/setup.sh build run test fuzz")
    assert again.stdout == "", "a second set-up has nothing to do"
    done = inside(
        "trap '.venv/bin/trellis down --dir /root/f' EXIT;"
        ".venv/bin/trellis up --dir /root/f --detach"
    )
    assert done.returncode == 0, done.stderr
