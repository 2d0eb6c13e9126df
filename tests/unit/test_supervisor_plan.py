"""The pure part of `up`: names, ports, secrets, paths and records."""

import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from console.supervisor_errors import AdvertiseUnknown, AlreadyUp, FolderUnusable
from console.supervisor_plan import (
    Paths,
    from_json,
    host_settings,
    notifier_settings,
    to_json,
    wanted_hosts,
)
from console.supervisor_process import (
    Process,
    end,
    process_of,
    read_processes,
    session_members,
    write_processes,
)
from console.supervisor_record import (
    decide,
    parse_advertise,
    private_dir,
    take_lock,
    write_record,
)
from console.supervisor_run import BACK_OFF_FIRST_S, BACK_OFF_LIMIT_S, STEADY_S, Kept
from facade.contract.errors import BadName
from facade.contract.settings import load


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "run").mkdir()
    return Paths(tmp_path, os.getuid())


def test_without_names_there_are_two_hosts() -> None:
    assert wanted_hosts((), ()) == ("host_a", "host_b")


def test_named_hosts_join_the_recorded_ones_in_lower_case() -> None:
    assert wanted_hosts(("a", "b"), ("C", "a")) == ("a", "b", "c")


def test_a_name_with_odd_characters_is_refused() -> None:
    with pytest.raises(BadName):
        wanted_hosts((), ("a.b",))


def test_record_reads_back_equal_and_keeps_its_secrets() -> None:
    made = decide(None, ["a", "b"], {"b": "127.0.0.1:99"})
    read = from_json(to_json(made))
    assert read == dataclasses.replace(made, hosts=("a", "b"))
    again = decide(read, ["c"], {})
    assert again.hosts == ("a", "b", "c")
    assert again.advertise == {"b": "127.0.0.1:99"}
    assert again.links["a"] == read.links["a"]
    assert {again.passwords[user] for user in read.users} == set(read.passwords.values())
    assert decide(again, [], {"b": ""}).advertise == {}


def test_all_ports_differ() -> None:
    made = decide(None, [f"h{n}" for n in range(20)], {})
    ports = [*made.ports.values(), *(int(link.rpartition(":")[2]) for link in made.links.values())]
    assert len(set(ports)) == len(ports) == 26


@pytest.mark.parametrize("key", ["ports", "links", "passwords", "hosts", "redis_password"])
def test_a_record_that_lacks_something_is_not_understood(key: str) -> None:
    document = json.loads(to_json(decide(None, [], {})))
    del document[key]
    with pytest.raises(ValueError, match=key):
        from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}'])
def test_something_else_is_no_record(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


def test_secrets_are_not_in_the_text_form() -> None:
    made = decide(None, [], {})
    for secret in (*made.passwords.values(), made.link_secret, made.redis_password):
        assert secret not in repr(made)


def test_settings_files_are_private_and_read_back(paths: Paths) -> None:
    made = decide(None, ["a"], {"a": "127.0.0.1:99"})
    write_record(made, paths)
    for file, settings in (
        (paths.settings("a"), host_settings(made, paths, "a")),
        (paths.notifier_settings, notifier_settings(made, paths)),
    ):
        assert file.stat().st_mode & 0o777 == 0o600
        assert load(file, {}) == settings
    assert load(paths.settings("a"), {}).need("host", "link", "broker", "redis")
    assert load(paths.notifier_settings, {}).need("broker", "mail")


@pytest.mark.parametrize("depth", [0, 3, 40])
def test_socket_paths_are_short_wherever_the_folder_lies(depth: int) -> None:
    paths = Paths(Path("/", *["folder"] * depth), 4_000_000_000)
    for name in ("a", "h" * 63, "redis"):
        longest = paths.socket_dir(name) / "nbd" / ("x" * 34)
        assert len(bytes(longest)) < 100
    assert paths.socket_dir("a") != paths.socket_dir("b")
    assert paths.socket_dir("h" * 63) != paths.socket_dir("h" * 62 + "i")


def test_two_folders_do_not_share_sockets() -> None:
    one, other = (Paths(Path("/", *["folder"] * 40, name), 0) for name in ("one", "other"))
    assert one.socket_dir("a") != other.socket_dir("a")


@pytest.mark.parametrize("text", ["a", "=1.2.3.4:5", "x=1.2.3.4:5", "a=nowhere", "a=1.2.3.4:0"])
def test_wrong_advertise_is_refused(text: str) -> None:
    with pytest.raises(AdvertiseUnknown):
        parse_advertise([text], ["a", "b"])


def test_advertise_is_read() -> None:
    found = parse_advertise(["A=10.0.0.1:70", "b="], ["a", "b"])
    assert found == {"a": "10.0.0.1:70", "b": ""}


def test_somebody_elses_socket_folder_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(FolderUnusable):
        private_dir(link)


def test_an_open_folder_of_ours_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    private_dir(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_only_one_holds_the_lock(paths: Paths) -> None:
    lock = take_lock(paths)
    with pytest.raises(AlreadyUp, match=str(os.getpid())):
        take_lock(paths)
    lock.release()
    take_lock(paths).release()


def test_back_off_grows_to_its_limit_and_starts_anew_after_a_steady_life() -> None:
    kept = Kept(part=None)  # type: ignore[arg-type]
    kept.started(0.0)
    pauses = [kept.ended(0.0) for _ in range(10)]
    assert pauses[0] == BACK_OFF_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == BACK_OFF_LIMIT_S
    kept.started(100.0)
    assert kept.ended(100.0 + STEADY_S) == BACK_OFF_FIRST_S


def test_a_process_is_its_id_and_its_start_time(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        process = process_of(child.pid)
        assert process is not None
        assert process.alive()
        assert session_members(child.pid) == [process]
        stranger = Process(child.pid, process.start_ticks - 1)
        assert not stranger.alive()
        assert not stranger.signal(signal.SIGKILL)
        assert end(stranger, 1, 1)
        assert child.poll() is None
        assert not process.wait(0.05)

        record = tmp_path / "record.json"
        write_processes(record, {"sleep": process})
        assert read_processes(record) == {"sleep": process}
        record.write_text(record.read_text().replace('"boot_id": "', '"boot_id": "0'))
        assert read_processes(record) == {}, "a pair means nothing after the machine's next start"

        assert end(process, 5, 5)
        assert not process.alive()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"processes": {"a": 1}}'])
def test_a_damaged_record_of_processes_names_none(tmp_path: Path, text: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(text)
    assert read_processes(record) == {}
