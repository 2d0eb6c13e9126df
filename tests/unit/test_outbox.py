"""The outbox: once by id, in order, limited history, several processes."""

import multiprocessing

import pytest

from broker import outbox as module
from broker.errors import OutboxFailed, OutboxFull
from broker.outbox import Outbox
from facade.contract.events import Event


def event(number, event_id=None):
    return Event(
        id=event_id or f"e{number}",
        time="2026-01-01T00:00:00.000Z",
        host="host_a",
        service="probe",
        subject="S",
        severity="info",
        name="poked",
        data={"number": number},
        text="poked",
        advice="",
    )


@pytest.fixture
def outbox(tmp_path):
    made = Outbox(tmp_path / "events.db", history_limit_events=10)
    yield made
    made.close()


def numbers(rows):
    return [e.data["number"] for _, e in rows]


def test_events_wait_in_their_order(outbox):
    assert outbox.put_many(event(n) for n in range(5)) == 5
    assert numbers(outbox.waiting()) == [0, 1, 2, 3, 4]
    assert numbers(outbox.waiting(2)) == [0, 1]


def test_a_second_put_of_an_id_is_nothing(outbox):
    assert outbox.put(event(1)) is True
    assert outbox.put(event(2, "e1")) is False
    assert numbers(outbox.waiting()) == [1]


def test_relayed_events_wait_no_more_and_an_id_stays_known(outbox):
    outbox.put_many(event(n) for n in range(3))
    first = outbox.waiting()[0][0]
    outbox.relayed([first])
    assert numbers(outbox.waiting()) == [1, 2]
    assert outbox.put(event(0)) is False
    assert numbers(outbox.history(10)) == [0, 1, 2]


def test_history_keeps_its_limit_and_never_drops_what_waits(outbox):
    outbox.put_many(event(n) for n in range(30))
    rows = outbox.waiting()
    outbox.relayed(number for number, e in rows if e.data["number"] != 3)
    assert numbers(outbox.waiting()) == [3]
    assert numbers(outbox.history(100)) == [3, *range(20, 30)]


def test_history_gives_the_last_ones_or_those_after(outbox):
    outbox.put_many(event(n) for n in range(8))
    last = outbox.history(3)
    assert numbers(last) == [5, 6, 7]
    assert numbers(outbox.history(100, after=last[0][0])) == [6, 7]
    assert numbers(outbox.history(2, after=0)) == [0, 1]


def test_full_outbox_refuses_and_keeps_what_it_has(outbox, monkeypatch):
    monkeypatch.setattr(module, "OUTBOX_LIMIT_EVENTS", 3)
    outbox.put_many(event(n) for n in range(3))
    with pytest.raises(OutboxFull):
        outbox.put(event(3))
    assert numbers(outbox.waiting()) == [0, 1, 2]


def test_unusable_file_is_a_typed_error(tmp_path):
    with pytest.raises(OutboxFailed):
        Outbox(tmp_path / "nowhere" / "events.db").put(event(1))


def _put_some(path, base):
    outbox = Outbox(path)
    for n in range(50):
        outbox.put(event(base + n))
        outbox.put(event(n, f"shared{n}"))
    outbox.close()


def test_several_processes_put_at_once(outbox, tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "events.db"
    workers = [context.Process(target=_put_some, args=(path, base)) for base in (1000, 2000, 3000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert outbox.waiting_count() == 3 * 50 + 50
