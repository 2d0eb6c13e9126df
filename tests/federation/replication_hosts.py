"""Two whole hosts for the tests of the data services: engine and beans as they are installed."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beans.proxy import Federation
from facade.contract.errors import UnreachableError
from facade.contract.settings import LinkSettings, dump
from facade.native import EngineClient

ROOT = Path(__file__).parents[2]
HOSTS = ("host_a", "host_b")
READY_S = 60.0
BEANS = ("volume", "config", "replication", "station")


def wait_until(fact, timeout_s=READY_S, pause_s=0.05):
    deadline_s = time.monotonic() + timeout_s
    while not (got := fact()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        time.sleep(pause_s)
    return got


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class WholeHost:
    """One host: `trellis-engine` and `trellis-beans`."""

    def __init__(self, settings, base):
        folder = base / settings.host.name
        port = free_port()
        self.host = dataclasses.replace(
            settings.host, data_dir=folder, volume_dirs=(folder / "volumes",), run_dir=folder / "r"
        )
        link = LinkSettings(f"127.0.0.1:{port}", f"127.0.0.1:{port}", "a secret of all engines")
        self.settings = dataclasses.replace(settings, host=self.host, link=link)
        self.volumes = folder / "volumes"
        self.volumes.mkdir(parents=True)
        self.host.run_dir.mkdir()
        self.config = folder / "trellis.toml"
        self.config.write_text(dump(self.settings))
        self.native = EngineClient(self.settings)
        self.processes = {}

    def start(self, *names):
        for name in names or ("facade.engine", "beans"):
            with (self.host.data_dir / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", f"{name}.process", "--config", str(self.config)],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def engine_answers(self):
        with contextlib.suppress(UnreachableError):
            return self.native.call("engine.info")
        return None

    def kill(self, name):
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait(10)

    def worker(self, bean):
        """Process id of the worker of one bean's calls."""
        parent = self.processes["beans"].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        log = (self.host.data_dir / "beans.log").read_text()
        mine = [pid for pid in children if f"started {bean}" in log and f" {pid}" in log]
        for line in reversed(log.splitlines()):
            for pid in mine:
                if f"started {bean} " in line and pid in line:
                    return int(pid)
        raise AssertionError(f"no worker of {bean}: {children}")

    def stop(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class WholeFederation:
    """Two hosts in one domain, and the calls that host_a's command line makes."""

    def __init__(self, servers):
        self.base = Path(tempfile.mkdtemp(prefix="trl"))
        self.domain = servers.make_domain()
        self.servers = servers
        self.hosts = {
            name: WholeHost(servers.settings(self.domain, self.base / "s", name), self.base)
            for name in HOSTS
        }
        self.federation = Federation(self.hosts["host_a"].settings)

    def start(self):
        for host in self.hosts.values():
            host.start()
        for name, host in self.hosts.items():
            wait_until(host.engine_answers)
            for bean in BEANS:
                wait_until(lambda name=name, bean=bean: self.answers(name, bean))

    def answers(self, host, bean):
        with contextlib.suppress(UnreachableError):
            self.federation.proxy(host, bean)
            calls = {
                "volume": lambda it: it.list(),
                "config": lambda it: it.show(),
                "replication": lambda it: it.peer_show(set_ids=[]),
                "station": lambda it: it.beans(),
            }
            calls[bean](self.federation.proxy(host, bean))
            return True
        return False

    def bean(self, host, bean="replication"):
        return self.federation.proxy(host, bean)

    def logs(self):
        return {str(path): path.read_text()[-4000:] for path in sorted(self.base.glob("*/*.log"))}

    def stop(self):
        for host in self.hosts.values():
            host.stop()
        self.federation.close()
        self.servers.api(f"vhosts/{self.domain}", method="DELETE")
        if os.environ.get("KEEP_HOSTS") is None:
            shutil.rmtree(self.base, ignore_errors=True)
