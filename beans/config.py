"""The config bean: the host's persistent configuration, which the engine reads at boot too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from beans.base import Bean, method
from beans.config_schemas import (
    Change,
    Configuration,
    HistoryArgs,
    ListArgs,
    PutSetArgs,
    SetArgs,
    SetRecord,
    VolumeNameArgs,
    VolumeRecord,
)
from facade import config_store
from facade.config_store import ConfigStore
from facade.contract.names import check_set, check_volume
from facade.errors import UnknownSet

if TYPE_CHECKING:
    from beans.proxy import Federation
    from broker.outbox import Outbox
    from facade.contract.settings import Settings


class ConfigBean(Bean):
    """Keeps what this host was asked for; every change is in the history, with who made it."""

    name = "config"

    def __init__(self, settings: "Settings", federation: "Federation", outbox: "Outbox") -> None:
        """Open the store when the worker starts, not here: this may run before a fork."""
        super().__init__(settings, federation, outbox)
        self._opened: ConfigStore | None = None

    def start(self) -> None:
        """Open the store, making it on a new host."""
        self._opened = ConfigStore(self.settings.host.config_path, host=self.host)

    def stop(self) -> None:
        """Close the store."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _store(self) -> ConfigStore:
        if self._opened is None:
            raise RuntimeError("the config bean was called before it was started")
        return self._opened

    @method(result=Configuration)
    def show(self) -> Mapping[str, Any]:
        """Give everything that this host was asked to have."""
        return {
            "host": self.host,
            "volumes": [asdict(record) for record in self._store.volumes()],
            "sets": [asdict(record) for record in self._store.sets()],
            "uses": [asdict(use) for use in self._store.uses()],
        }

    @method(args=ListArgs, result=SetRecord, many=True)
    def list(self, service: str | None = None) -> Sequence[Mapping[str, Any]]:
        """Give the sets of a service, or of all."""
        return [asdict(record) for record in self._store.sets(service)]

    @method(args=SetArgs, result=SetRecord)
    def get(self, service: str, name: str) -> Mapping[str, Any]:
        """Give one set. Raises UnknownSet."""
        record = self._store.set(service, check_set(name))
        if record is None:
            raise UnknownSet(service=service, name=name, host=self.host)
        return asdict(record)

    @method(args=HistoryArgs, result=Change, many=True)
    def history(self, limit: int = 100) -> Sequence[Mapping[str, Any]]:
        """Give the latest changes, the newest first."""
        return [asdict(change) for change in self._store.history(limit)]

    @method(args=PutSetArgs, result=SetRecord)
    def put_set(
        self, record: Mapping[str, Any], uses: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Record a set and claim its volumes. Raises SetExists, VolumeBusy, a StoreError."""
        check_set(record["name"])
        claims = [config_store.Use(**use) for use in uses]
        self._store.put_set(config_store.SetRecord(**record), claims, who=self.caller())
        return record

    @method(args=SetArgs)
    def drop_set(self, service: str, name: str) -> None:
        """Forget a set and its claims; one that is not there is fine."""
        self._store.drop_set(service, check_set(name), who=self.caller())

    @method(args=VolumeRecord, result=VolumeRecord)
    def put_volume(
        self,
        name: str,
        path: str,
        control: str,
        export: dict[str, Any] | None = None,
        read_only: bool = False,
    ) -> Mapping[str, Any]:
        """Record a volume as under control. Raises PathRefused."""
        record = config_store.VolumeRecord(check_volume(name), path, control, export, read_only)
        self._store.put_volume(record, who=self.caller())
        return asdict(record)

    @method(args=VolumeNameArgs)
    def drop_volume(self, name: str) -> None:
        """Forget a volume; one that is not there is fine. Raises VolumeBusy while it is used."""
        self._store.drop_volume(check_volume(name), who=self.caller())


BEAN = ConfigBean
