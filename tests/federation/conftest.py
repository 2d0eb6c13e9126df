"""Real parts for these tests: a private RabbitMQ and Redis, and hosts that run their beans."""

import base64
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from broker.definitions import NOTIFIER_USER, OPS_USER, definitions, password_hash
from broker.embedded import EmbeddedBroker, EmbeddedRedis
from facade.contract.settings import (
    BrokerSettings,
    HostSettings,
    RedisSettings,
    Settings,
)
from tests.federation.host import probe_service
from tests.federation.replication_hosts import WholeFederation

ROOT = Path(__file__).parents[2]
HOSTS = ("host_a", "host_b")
PASSWORD = "correct-horse-battery"
READY_S = 40.0


def wait_until(fact, timeout_s=READY_S, pause_s=0.05):
    """Wait for a fact; gives it."""
    deadline_s = time.monotonic() + timeout_s
    while not (got := fact()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {fact}"
        time.sleep(pause_s)
    return got


def ended(pid):
    """The process is gone, or only waits to be reaped."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


class Servers:
    """RabbitMQ and Redis of this test session."""

    def __init__(self, base):
        admin = {
            "users": [
                {
                    "name": "admin",
                    "password_hash": password_hash(PASSWORD),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": ["administrator"],
                }
            ]
        }
        self.broker = EmbeddedBroker(base / "rabbitmq", admin)
        self.redis = EmbeddedRedis(base / "redis", socket_path=base / "r.sock")

    def start(self):
        self.broker.start()
        self.redis.start()
        self.broker.wait_ready()
        self.redis.wait_ready()

    def stop(self):
        self.broker.stop()
        self.redis.stop()

    def api(self, path, document=None, method=None):
        """Call RabbitMQ's management API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.broker.management_port}/api/{path}",
            data=None if document is None else json.dumps(document).encode(),
            method=method or ("GET" if document is None else "POST"),
            headers={
                "content-type": "application/json",
                "authorization": "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode(),
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def make_domain(self):
        """Make a virtual host as the definitions say, for one test."""
        domain = f"t{uuid.uuid4().hex[:12]}"
        users = dict.fromkeys((*HOSTS, NOTIFIER_USER, OPS_USER), PASSWORD)
        wait_until(self._api_answers)
        self.api("definitions", definitions(domain, HOSTS, users))
        return domain

    def drop_domain(self, domain):
        if not self.broker.answers():  # a failed test left it down
            self.start_broker()
            wait_until(self._api_answers)
        self.api(f"vhosts/{domain}", method="DELETE")

    def _api_answers(self):
        with contextlib.suppress(OSError):
            return self.api("overview")
        return None

    def kill_broker(self):
        os.kill(self.broker.pids["rabbitmq"], signal.SIGKILL)
        wait_until(lambda: not self.broker.answers())
        self.broker.stop()

    def start_broker(self):
        self.broker.start()
        self.broker.wait_ready()

    def settings(self, domain, base, user="host_a"):
        name = user if "." not in user else ""
        folder = base / user
        (folder / "run").mkdir(parents=True, exist_ok=True)
        return Settings(
            host=HostSettings(name=name, domain=domain, data_dir=folder, run_dir=folder / "run"),
            broker=BrokerSettings(
                urls=(f"amqp://{user}:{PASSWORD}@127.0.0.1:{self.broker.amqp_port}",)
            ),
            redis=RedisSettings(url=self.redis.url),
        )


class Host:
    """One host's `trellis-beans`."""

    def __init__(self, settings):
        self.settings = settings
        self.log = settings.host.data_dir / "beans.log"
        self.process = None

    def start(self):
        config = self.settings.host.data_dir / "settings.pickle"
        config.write_bytes(pickle.dumps(self.settings))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.federation.host", str(config)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def children(self):
        """Process ids by worker name, of those alive."""
        found = {}
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):
                text = json.loads(line)["text"]
                if text.startswith("started "):
                    words = text.split()
                    found[words[1]] = int(words[-1])
        return found

    @contextlib.contextmanager
    def killed(self, worker):
        """Meanwhile a worker is dead: its parent, stopped, cannot start it again."""
        pid = self.children()[worker]
        self.process.send_signal(signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: ended(pid), 10)
            yield pid
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Cluster:
    """Two hosts in one domain, and a federation as host_a's command line sees it."""

    def __init__(self, servers, base):
        from beans.proxy import Federation

        self.servers = servers
        self.domain = servers.make_domain()
        self.settings = {host: servers.settings(self.domain, base, host) for host in HOSTS}
        self.hosts = {host: Host(self.settings[host]) for host in HOSTS}
        self.federation = Federation(self.settings["host_a"])

    def start(self):
        for host in self.hosts.values():
            host.start()
        for host in HOSTS:
            self.wait_ready(host)

    def wait_ready(self, host):
        wait_until(lambda: self.answers(host, "station") and self.answers(host, "probe"))

    def answers(self, host, bean):
        from facade.contract.errors import UnreachableError

        try:
            if bean == "station":
                return self.federation.proxy(host, "station").beans() is not None
            return self.federation.proxy(host, bean).echo(text="?")["text"] == "?"
        except UnreachableError:
            return False

    def stop(self):
        for host in self.hosts.values():
            host.stop()
        self.federation.close()
        self.servers.drop_domain(self.domain)

    @contextlib.contextmanager
    def task_events(self, note):
        """Hand every task event to a function meanwhile, as Flower gets them."""
        from beans.app import make_client_app

        settings = self.servers.settings(
            self.domain, self.settings["host_a"].host.data_dir, OPS_USER
        )
        app = make_client_app(settings)
        ended = threading.Event()
        ready = threading.Event()

        def listen():
            with app.connection() as connection:
                receiver = app.events.Receiver(connection, handlers={"*": note})
                with receiver.consumer_context(wakeup=False) as (own, _, _):
                    ready.set()
                    while not ended.is_set():
                        with contextlib.suppress(TimeoutError):
                            own.drain_events(timeout=0.2)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert ready.wait(10)
        yield
        ended.set()
        thread.join(10)

    def proxy(self, host, bean="probe"):
        return self.federation.proxy(host, bean)


@pytest.fixture(scope="package", autouse=True)
def probe():
    """The probe is a data service for the tests of this folder, and for no others."""
    with probe_service():
        yield


@pytest.fixture(scope="package")
def servers(probe, tmp_path_factory):
    """One private RabbitMQ and Redis for the tests of this folder."""
    made = Servers(tmp_path_factory.mktemp("fed"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="package")
def cluster(servers, tmp_path_factory):
    """Two running hosts for tests that harm nobody."""
    made = Cluster(servers, tmp_path_factory.mktemp("hosts"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="package")
def whole(servers):
    """Two whole hosts, engines and all, for the tests of the data services."""
    made = WholeFederation(servers)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def domain(servers, tmp_path):
    """A virtual host of its own, without beans; gives a function user -> settings."""
    name = servers.make_domain()
    yield lambda user="host_a": servers.settings(name, tmp_path, user)
    servers.drop_domain(name)
