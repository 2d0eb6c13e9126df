"""The mail sink: complete, ordered, durable files."""

import os
import signal
import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from broker.embedded import free_ports
from console.mail_sink import MailStore


def message(subject: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "a@localhost", "b@localhost", subject
    mail.set_content("Grüße\n.\nend\n")
    return mail


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    (port,) = free_ports(1)
    folder = tmp_path / "mail"
    command = [sys.executable, "-m", "console.mail_sink"]
    command += ["--listen", f"127.0.0.1:{port}", "--dir", str(folder)]
    with subprocess.Popen(command) as process:
        deadline_s = time.monotonic() + 20
        while True:
            try:
                smtplib.SMTP("127.0.0.1", port, timeout=5).quit()
                break
            except OSError:
                assert time.monotonic() < deadline_s, "the sink does not answer"
                assert process.poll() is None
                time.sleep(0.02)
        yield port, folder
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_each_mail_is_a_file_in_the_order_it_came(sink: tuple[int, Path]) -> None:
    port, folder = sink
    with smtplib.SMTP("127.0.0.1", port, timeout=5) as server:
        for number in range(12):
            server.send_message(message(f"mail {number}"))
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{n:08}.eml" for n in range(1, 13)]
    for number, file in enumerate(files):
        assert f"Subject: mail {number}".encode() in file.read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_mail_that_is_too_long_is_refused_and_not_stored(sink: tuple[int, Path]) -> None:
    port, folder = sink
    mail = message("long")
    mail.set_content("x" * 70 + "\n" + "y\n" * 3_000_000)
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as server:
        with pytest.raises(smtplib.SMTPException):
            server.send_message(mail)
    assert list(folder.iterdir()) == []


def test_numbers_go_on_after_a_restart_and_halves_are_removed(tmp_path: Path) -> None:
    MailStore(tmp_path).put(b"one")
    (tmp_path / "99999.part").write_bytes(b"ha")
    second = MailStore(tmp_path).put(b"two")
    assert second.name == "00000002.eml"
    assert sorted(os.listdir(tmp_path)) == ["00000001.eml", "00000002.eml"]  # noqa: PTH208


def test_a_name_that_is_taken_is_not_replaced(tmp_path: Path) -> None:
    store = MailStore(tmp_path)
    (tmp_path / "00000001.eml").write_bytes(b"somebody's")
    assert store.put(b"mine").name == "00000002.eml"
    assert (tmp_path / "00000001.eml").read_bytes() == b"somebody's"
