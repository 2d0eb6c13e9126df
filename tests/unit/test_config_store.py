"""The configuration store: each change whole or not at all, whoever else uses the file."""

import contextlib
import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from facade.attachment_errors import VolumeAttached
from facade.config_schema import SCHEMA_VERSION
from facade.config_store import (
    HISTORY_CHANGES_MAX,
    Attachment,
    ConfigStore,
    Intent,
    SetRecord,
    Use,
)
from facade.config_store import VolumeRecord as Volume
from facade.errors import (
    PathRefused,
    SetExists,
    StoreDamaged,
    StoreFull,
    StoreUnavailable,
    StoreVersion,
    VolumeBusy,
)


def a_set(name: str = "s", set_id: str = "1", enabled: bool = False) -> SetRecord:
    return SetRecord("replication", name, set_id, enabled, {"role": "primary"})


def use(volume: str, role: str = "primary", name: str = "s", service: str = "replication") -> Use:
    return Use(volume, service, name, role)


@pytest.fixture
def store(tmp_path: Path):
    with ConfigStore(tmp_path / "config.db") as opened:
        yield opened


def everything(store: ConfigStore) -> tuple:
    return store.volumes(), store.sets(), store.uses(), store.history()


def test_what_was_put_is_there_for_another_reader(store):
    store.put_volume(Volume("v", "/x/v", "svi"))
    store.put_set(a_set(enabled=True), [use("v"), use("b", "bitmap")])
    with ConfigStore(store.path, read_only=True) as reader:
        assert reader.volumes() == [Volume("v", "/x/v", "svi")]
        assert reader.set("replication", "s") == a_set(enabled=True)
        assert reader.set_by_id("1") == a_set(enabled=True)
        assert reader.uses("b") == [use("b", "bitmap")]
        with pytest.raises(StoreUnavailable):
            reader.put_volume(Volume("w", "/x/w", "svi"))


def test_a_reader_of_a_host_without_configuration_finds_nothing(tmp_path):
    with ConfigStore(tmp_path / "none.db", read_only=True) as reader:
        assert reader.volumes() == []
        assert reader.sets("replication") == []
    assert not (tmp_path / "none.db").exists()


def test_a_volume_has_one_role_in_one_set(store):
    store.put_set(a_set(), [use("v")])
    before = everything(store)
    with pytest.raises(VolumeBusy) as caught:
        store.put_set(a_set("t", "2"), [use("w", name="t"), use("v", "secondary", "t")])
    assert caught.value.data == {"volume": "v", "used_by": "s", "role": "primary"}
    assert everything(store) == before


def test_one_volume_twice_in_one_set_is_refused(store):
    with pytest.raises(VolumeBusy):
        store.put_set(a_set(), [use("v"), use("v", "bitmap")])
    assert store.sets() == []


def test_two_services_share_data_but_no_bitmap(store):
    imaging = SetRecord("imaging", "i", "2", False, {})
    store.put_set(a_set(), [use("v"), use("b", "bitmap")])
    store.put_set(imaging, [use("v", "master", "i", "imaging")])
    with pytest.raises(VolumeBusy):
        store.put_set(imaging, [use("b", "master", "i", "imaging")])
    assert {u.service for u in store.uses("v")} == {"replication", "imaging"}


def test_another_set_of_the_same_name_is_refused_and_the_same_one_replaced(store):
    store.put_set(a_set(), [use("v")])
    with pytest.raises(SetExists):
        store.put_set(a_set(set_id="2"), [])
    store.put_set(a_set(enabled=True), [use("w")])
    assert [u.volume for u in store.uses()] == ["w"]


def test_a_used_volume_is_not_dropped(store):
    store.put_volume(Volume("v", "/x/v", "svi"))
    store.put_set(a_set(), [use("v")])
    with pytest.raises(VolumeBusy):
        store.drop_volume("v")
    store.drop_set("replication", "s")
    store.drop_set("replication", "s")
    store.drop_volume("v")
    assert store.volumes() == []
    assert store.uses() == []


def test_one_path_has_one_name(store):
    store.put_volume(Volume("v", "/x/v", "svi"))
    with pytest.raises(PathRefused):
        store.put_volume(Volume("w", "/x/v", "svi"))


def test_intents_outlive_the_process(store):
    intent = Intent("i1", "replication", "create", {"set_id": "1"}, "2026-01-01T00:00:00Z")
    store.put_intent(intent)
    with ConfigStore(store.path) as other:
        assert other.intents("replication") == [intent]
        other.drop_intent("i1")
    assert store.intents("replication") == []


def test_history_tells_who_did_what_and_is_bounded(store, monkeypatch):
    monkeypatch.setattr("facade.config_store.HISTORY_CHANGES_MAX", 3)
    for number in range(5):
        store.put_volume(Volume(f"v{number}", f"/x/v{number}", "svi"), who="host_b")
    changes = store.history()
    assert [change.detail["name"] for change in changes] == ["v4", "v3", "v2"]
    assert {(change.who, change.what) for change in changes} == {("host_b", "put_volume")}
    assert HISTORY_CHANGES_MAX == 1000


def test_a_full_disk_changes_nothing(store):
    store.put_volume(Volume("v", "/x/v", "svi"))
    before = everything(store)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull):
        store.put_set(SetRecord("replication", "s", "1", True, {"big": "x" * 100_000}), [use("v")])
    assert everything(store) == before
    store._db.execute("PRAGMA max_page_count = 100000")
    store.put_set(a_set(), [use("v")])


@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, read_only):
    path = tmp_path / "config.db"
    with ConfigStore(path) as store:
        for number in range(200):
            store.put_volume(Volume(f"v{number}", f"/x/v{number}", "svi"))
    raw = bytearray(path.read_bytes())
    raw[4096:20480] = b"\xa5" * 16384
    path.write_bytes(raw)
    with pytest.raises(StoreDamaged):
        ConfigStore(path, read_only=read_only)
    path.write_bytes(b"no database at all, though long enough to be taken for one" * 100)
    with pytest.raises(StoreDamaged):
        ConfigStore(path, read_only=read_only)


def test_a_later_format_is_refused(tmp_path):
    path = tmp_path / "config.db"
    ConfigStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreVersion, match="99"):
        ConfigStore(path)


def _claim_many(path: Path, worker: int, wins: "multiprocessing.Queue") -> None:
    won = 0
    with ConfigStore(path) as store:
        for number in range(20):
            name = f"{worker}_{number}"
            try:
                store.put_set(a_set(name, name), [use(f"v{number}", name=name)])
                won += 1
            except VolumeBusy:
                pass
    wins.put(won)


def test_processes_that_claim_at_once_get_each_volume_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    wins = context.Queue()
    workers = [
        context.Process(target=_claim_many, args=(tmp_path / "config.db", number, wins))
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    total = sum(wins.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    assert total == 20


def test_an_attached_volume_cannot_be_forgotten_and_a_path_has_one_volume(store):
    here = Attachment("v", "/srv/disk", "nbdfuse", "/run/attach/v/v", False)
    for name in "vw":
        store.put_volume(Volume(name, f"/x/{name}", "svi"))
    store.put_attachment(here)
    before = everything(store)
    with pytest.raises(VolumeAttached, match="/srv/disk"):
        store.drop_volume("v")
    with pytest.raises(PathRefused, match="v is attached there"):
        store.put_attachment(Attachment("w", "/srv/disk", "nbd", "/dev/nbd0", True))
    assert everything(store) == before
    assert store.attachments() == [here]
    assert store.attachment("w") is None
    store.drop_attachment("v")
    store.drop_attachment("v")
    store.drop_volume("v")
    assert store.attachments() == []


def as_version_1(path):
    """The file as the first release made it."""
    with ConfigStore(path) as store:
        store.put_volume(Volume("v", "/x/v", "svi"))
        store.put_set(a_set(), [use("v")])
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DROP TABLE attachments")
    for column in ("export", "read_only"):
        db.execute(f"ALTER TABLE volumes DROP COLUMN {column}")
    db.execute("PRAGMA user_version = 1")
    db.close()


def version_of(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def test_a_file_of_the_first_format_is_brought_to_this_one(tmp_path):
    path = tmp_path / "config.db"
    as_version_1(path)
    with ConfigStore(path, read_only=True) as reader:
        assert (reader.volume("v"), reader.attachments()) == (Volume("v", "/x/v", "svi"), [])
    assert version_of(path) == 1
    for _ in range(2):
        with ConfigStore(path) as store:
            assert (store.volume("v"), store.uses()) == (Volume("v", "/x/v", "svi"), [use("v")])
            store.put_attachment(Attachment("v", "/srv/disk", "nbdfuse", "/r/v", False))
    assert version_of(path) == SCHEMA_VERSION


def test_an_export_is_kept_with_its_volume(store):
    export = {"plain": False, "clients": ["a", "b"]}
    store.put_volume(Volume("v", "/x/v", "ste", export))
    assert store.volume("v") == Volume("v", "/x/v", "ste", export)
    store.put_volume(Volume("v", "/x/v", "svi"))
    assert store.volumes() == [Volume("v", "/x/v", "svi")]


def test_that_a_volume_is_read_only_is_kept_with_it(store):
    store.put_volume(Volume("v", "/x/v", "svi", read_only=True))
    assert store.volume("v") == Volume("v", "/x/v", "svi", None, True)
    store.put_volume(Volume("v", "/x/v", "svi"))
    assert store.volumes() == [Volume("v", "/x/v", "svi", None, False)]
