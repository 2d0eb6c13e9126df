"""The compose file: its syntax, commands, variables, secrets and ports, without a Docker engine."""

import base64
import hashlib
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from facade.contract.settings import Settings, load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "compose"
DOCUMENT: dict[str, Any] = yaml.safe_load((FOLDER / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
OURS = {name: s for name, s in SERVICES.items() if "trellis" in s["image"]}
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
# What each command needs of the settings; Flower's application is the sixth process.
NEEDS = {
    "trellis-engine": ("host", "link"),
    "trellis-beans": ("host", "broker", "redis"),
    "trellis-notifier": ("broker", "mail"),
    "celery": ("broker",),
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    done = subprocess.run(
        [sys.executable, "-I", str(FOLDER / "make_secrets.py"), "--dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def with_defaults(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


def environment(service: dict[str, Any], secrets: Path) -> dict[str, str]:
    found = {}
    for name, value in service.get("environment", {}).items():
        found[name] = with_defaults(str(value)).replace("/run/secrets", str(secrets))
    return found


def settings_of(name: str, secrets: Path) -> Settings:
    return load(None, environment(SERVICES[name], secrets))


def test_all_parts_are_there() -> None:
    assert set(SERVICES) == {
        "rabbitmq", "redis", "flower", "mail-sink", "notifier",
        "host-a-engine", "host-a-beans", "host-b-engine", "host-b-beans",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_is_an_installed_one(name: str) -> None:
    command = OURS[name]["command"][0]
    assert command in SCRIPTS or command == "celery"


@pytest.mark.parametrize("name", sorted(n for n, s in OURS.items() if s["command"][0] in NEEDS))
def test_variables_are_known_and_sufficient(name: str, secrets: Path) -> None:
    settings = settings_of(name, secrets)
    settings.need(*NEEDS[OURS[name]["command"][0]])


@pytest.mark.parametrize("host", ["a", "b"])
def test_engine_and_beans_of_a_host_agree(host: str, secrets: Path) -> None:
    engine, beans = (settings_of(f"host-{host}-{part}", secrets) for part in ("engine", "beans"))
    assert engine.host == beans.host
    assert engine.host.name == f"host_{host}"
    assert engine.link == beans.link
    assert engine.link.advertise.partition(":")[0] in SERVICES
    volumes = [SERVICES[f"host-{host}-{part}"]["volumes"] for part in ("engine", "beans")]
    assert volumes[0] == volumes[1]


def test_hosts_share_the_link_secret_and_nothing_else(secrets: Path) -> None:
    a, b = (settings_of(f"host-{host}-beans", secrets) for host in "ab")
    assert a.link.secret == b.link.secret
    assert a.broker.urls != b.broker.urls
    assert not set(SERVICES["host-a-engine"]["volumes"]) & set(SERVICES["host-b-engine"]["volumes"])


def test_no_secret_stands_in_the_compose_file() -> None:
    text = (FOLDER / "docker-compose.yml").read_text("utf-8")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"SECRET|PASSWORD|BROKER_URLS|REDIS_URL", variable)
            assert not secret or str(value).startswith("/run/secrets/"), (name, variable)
    assert "password=" not in text.lower()


def test_secrets_are_declared_made_and_used(secrets: Path) -> None:
    declared = DOCUMENT["secrets"]
    made = {path.name for path in secrets.iterdir()}
    assert set(declared) == made
    assert all(entry["file"] == f"./secrets/{name}" for name, entry in declared.items())
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(declared)
    for name, service in SERVICES.items():
        needed = set(re.findall(r"/run/secrets/(\w+)", json.dumps(service)))
        assert needed <= set(service.get("secrets", [])), name


def test_secrets_are_private_and_kept(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    before = (secrets / "link_secret").read_text()
    script = [sys.executable, str(FOLDER / "make_secrets.py"), "--dir", str(secrets)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "--replace" in done.stderr
    assert (secrets / "link_secret").read_text() == before


def test_addresses_log_in_to_the_rabbitmq_of_the_definitions(secrets: Path) -> None:
    users = json.loads((secrets / "definitions").read_text())["users"]
    hashes = {user["name"]: base64.b64decode(user["password_hash"]) for user in users}
    for path in secrets.glob("*_broker_urls"):
        url = urlsplit(path.read_text().strip())
        assert url.hostname in SERVICES
        salted = hashes.pop(url.username)
        assert hashlib.sha256(salted[:4] + (url.password or "").encode()).digest() == salted[4:]
    assert not hashes, f"nobody can log in as {sorted(hashes)}"


def test_flower_reads_its_login(secrets: Path) -> None:
    conf: dict[str, Any] = {}
    exec((secrets / "flower_conf").read_text(), conf)
    assert conf["basic_auth"][0].startswith("ops:")
    assert urlsplit(conf["broker_api"]).hostname in SERVICES


def test_redis_takes_the_password_of_the_address(secrets: Path) -> None:
    password = urlsplit((secrets / "redis_url").read_text().strip()).password
    assert f'requirepass "{password}"' in (secrets / "redis_conf").read_text()
    assert (secrets / "redis_password").read_text().strip() == password


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_ports_volumes_and_dependencies_are_sane(name: str) -> None:
    service = SERVICES[name]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "only the loopback is published"
    for mount in service.get("volumes", []):
        source, target, *mode = mount.split(":")
        assert target.startswith("/")
        assert mode in ([], ["ro"])
        assert (
            (FOLDER / source).is_file() if source.startswith(".") else source in DOCUMENT["volumes"]
        )
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        if how["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert set(service["networks"]) <= set(DOCUMENT["networks"])


def test_every_variable_of_the_file_is_in_the_example() -> None:
    text = (FOLDER / "docker-compose.yml").read_text("utf-8")
    used = set(re.findall(r"\$\{(\w+):-", text))
    assert not re.findall(r"(?<!\$)\$\{\w+\}", text), "each has a default"
    example = (FOLDER / ".env.example").read_text("utf-8")
    assert used == set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_dockerfile_copies_what_is_there_and_every_package() -> None:
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    copied = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for name in line.split()
    ]
    assert {"facade", "broker", "beans", "notifier", "console"} <= set(copied)
    missing = [name for name in copied if not (ROOT / name).exists()]
    assert not missing


def test_docker_itself_takes_the_file(secrets: Path) -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("there is no docker client")
    version = [docker, "compose", "version"]
    if subprocess.run(version, capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip("the docker client has no compose plugin")
    command = [docker, "compose", "-f", str(FOLDER / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
