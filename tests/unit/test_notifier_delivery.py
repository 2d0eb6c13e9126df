"""Each event reaches each person once, whatever the mail server (a real one here) does."""

import socket
import threading
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from facade.contract.events import Event
from notifier.delivery import Delivery
from notifier.errors import MailServerAway
from notifier.ledger import Ledger
from notifier.rules import default_rules
from notifier.smtp import MailServer

TIMEOUT_S = 10.0
A, B = "a@site.example", "b@site.example"


class Inbox:
    """Keeps what it is sent; says `says[recipient]` in place of taking a mail for somebody."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], bytes]] = []
        self.says: dict[str, str] = {}
        self.data_answers: list[str] = []
        self.changed = threading.Condition()

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.says:
            return self.says[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.data_answers:
            return self.data_answers.pop(0)
        assert isinstance(envelope.content, bytes)
        with self.changed:
            self.mails.append((list(envelope.rcpt_tos), envelope.content))
            self.changed.notify_all()
        return "250 OK"

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.mails) >= count, TIMEOUT_S)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def server(inbox: Inbox) -> Iterator[Controller]:
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller
    controller.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def event(number: int = 1) -> Event:
    return Event(
        f"id{number}",
        "2026-01-02T03:04:05Z",
        "host_a",
        "replication",
        "set1",
        "warning",
        "link_lost",
        {},
        f"Text number {number}.",
        "",
    )


def delivery(folder: Path, url: str, recipients: tuple[str, ...] = (A, B)) -> Delivery:
    return Delivery(
        default_rules(recipients),
        Ledger(folder / "notifier.db"),
        MailServer(url, timeout_s=5.0),
        "trellis@site.example",
        "d1",
        retry_first_s=0.02,
        retry_max_s=0.1,
    )


@pytest.fixture
def notifier(server: Controller, tmp_path: Path) -> Iterator[Delivery]:
    made = delivery(tmp_path, f"smtp://127.0.0.1:{server.port}")
    yield made
    made.ledger.close()


def test_event_reaches_everybody(notifier: Delivery, inbox: Inbox) -> None:
    notifier.receive(event())
    assert notifier.step()
    assert [to for to, _ in inbox.mails] == [[A, B]]
    parsed = message_from_bytes(inbox.mails[0][1])
    assert parsed["Subject"] == "[Trellis] WARNING: set1 on host_a: link lost"
    assert not notifier.step()


def test_second_coming_of_an_event_sends_nothing(notifier: Delivery, inbox: Inbox) -> None:
    for _ in range(3):
        notifier.receive(event())
        notifier.step()
    assert len(inbox.mails) == 1


def test_who_was_told_is_known_after_a_restart(
    notifier: Delivery, inbox: Inbox, server: Controller, tmp_path: Path
) -> None:
    notifier.receive(event())
    notifier.step()
    again = delivery(tmp_path, f"smtp://127.0.0.1:{server.port}")
    again.receive(event())
    again.step()
    again.ledger.close()
    assert len(inbox.mails) == 1


def test_only_those_left_are_tried_again(notifier: Delivery, inbox: Inbox) -> None:
    inbox.says[B] = "450 mailbox busy"
    notifier.receive(event())
    notifier.step()
    assert [to for to, _ in inbox.mails] == [[A]]
    del inbox.says[B]
    thread = threading.Thread(target=notifier.run)
    thread.start()
    inbox.wait(2)
    notifier.stop()
    thread.join(TIMEOUT_S)
    assert [to for to, _ in inbox.mails] == [[A], [B]]
    ids = {message_from_bytes(content)["Message-ID"] for _, content in inbox.mails}
    assert len(ids) == 1


def test_one_refused_mail_does_not_hold_up_the_next(notifier: Delivery, inbox: Inbox) -> None:
    inbox.data_answers = ["554 looks like spam"]
    notifier.receive(event(1))
    notifier.receive(event(2))
    notifier.step()
    assert len(inbox.mails) == 1
    assert b"Text number 2." in inbox.mails[0][1]


def test_refused_too_often_is_given_up_and_kept(notifier: Delivery, inbox: Inbox) -> None:
    inbox.says = {A: "550 no such user", B: "550 no such user"}
    notifier.tries_max = 3
    now_s = [0.0]
    notifier.clock = lambda: now_s[0]
    notifier.receive(event())
    for _ in range(3):
        assert notifier.step()
        now_s[0] += 100
    assert not notifier.step()
    kept = notifier.ledger.given_up()
    assert [entry.event for entry in kept] == [event()]
    assert "550 no such user" in kept[0].reason


def test_server_away_loses_nothing(tmp_path: Path, inbox: Inbox) -> None:
    port = free_port()
    notifier = delivery(tmp_path, f"smtp://127.0.0.1:{port}")
    for number in range(5):
        notifier.receive(event(number))
    with pytest.raises(MailServerAway, match=rf"127\.0\.0\.1:{port} takes no mail now"):
        notifier.step()
    thread = threading.Thread(target=notifier.run)
    thread.start()
    back = Controller(inbox, hostname="127.0.0.1", port=port)
    back.start()
    try:
        inbox.wait(5)
    finally:
        notifier.stop()
        thread.join(TIMEOUT_S)
        back.stop()
        notifier.ledger.close()
    texts = [content for _, content in inbox.mails]
    assert [f"Text number {n}.".encode() in texts[n] for n in range(5)] == [True] * 5


def test_event_not_mailed_is_there_for_the_next_process(
    tmp_path: Path, inbox: Inbox, server: Controller
) -> None:
    dead = delivery(tmp_path, "smtp://127.0.0.1:1")
    dead.receive(event())
    # No close: the process is gone; the next one finds the event.
    after = delivery(tmp_path, f"smtp://127.0.0.1:{server.port}")
    assert after.step()
    after.ledger.close()
    dead.ledger.close()
    assert len(inbox.mails) == 1


def test_stop_ends_a_waiting_run(notifier: Delivery) -> None:
    thread = threading.Thread(target=notifier.run)
    thread.start()
    notifier.stop()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
