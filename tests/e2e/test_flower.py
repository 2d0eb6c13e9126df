"""Flower of a real federation shows every bean as a worker, behind its password."""

from __future__ import annotations

import urllib.error
import urllib.request
from base64 import b64encode
from urllib.parse import urlsplit

import pytest

from console.place import record_of
from tests.e2e.conftest import Federation
from tests.e2e.seat import wait_for

BEANS = ("config", "replication", "replication.jobs", "station", "volume")


def test_every_bean_is_a_worker(federation: Federation) -> None:
    record = record_of(federation.seat.directory)
    assert record is not None
    parts = urlsplit(record.flower_login_url)
    login = b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    page = f"{record.flower_url}workers"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(page, timeout=10)
    request = urllib.request.Request(page, headers={"Authorization": f"Basic {login}"})

    def shown() -> bool:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
        return all(f"{bean}@{host}" in text for bean in BEANS for host in ("host_a", "host_b"))

    wait_for("page with every bean", shown)
