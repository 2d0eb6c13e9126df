"""The client of the control socket against a server that answers wrongly, late or not at all."""

import json
import socket
import threading

import pytest

from facade.errors import (
    EngineGone,
    EngineSilent,
    EngineUnreachable,
    ProtocolBroken,
    UnknownVolume,
)
from facade.native import LINE_BYTES_MAX, EngineClient


@pytest.fixture
def served(tmp_path):
    """Give a function that starts a server of one answer: a function request -> bytes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "engine.sock"))
    listener.listen()
    ended = threading.Event()
    threads = []

    def start(answer):
        def run():
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                reply = answer(json.loads(lines.readline()))
                if reply is None:
                    ended.wait(10)
                else:
                    connection.sendall(reply)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return EngineClient(tmp_path)

    yield start
    ended.set()
    for thread in threads:
        thread.join(10)
    listener.close()


def line(document):
    return json.dumps(document).encode() + b"\n"


def test_an_answer_in_pieces_is_one_answer(served):
    client = served(lambda asked: line({"id": asked["id"], "result": [asked, "x" * 300_000]}))
    answer = client.call("volume.open", name="v", path="/ü")
    assert answer[0]["params"] == {"name": "v", "path": "/ü"}
    assert len(answer[1]) == 300_000


def test_the_engines_error_is_its_own_class(served):
    wire = {"code": "unknown_volume", "data": {"volume": "v", "host": "h"}}
    with pytest.raises(UnknownVolume) as caught:
        served(lambda asked: line({"id": asked["id"], "error": wire})).call("x")
    assert caught.value.volume == "v"


def test_nobody_there(tmp_path):
    with pytest.raises(EngineUnreachable, match=r"engine\.sock"):
        EngineClient(tmp_path).call("engine.info")


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (EngineGone, b""),
        (EngineGone, b'{"id": 1, "res'),
        (EngineSilent, None),
        (ProtocolBroken, b"nonsense\n"),
        (ProtocolBroken, b"[]\n"),
        (ProtocolBroken, b'{"id": 77, "result": 1}\n'),
        (ProtocolBroken, b'{"id": 1}\n'),
        (ProtocolBroken, b"x" * (LINE_BYTES_MAX + 2)),
    ],
)
def test_answers_that_are_none(served, error, answer):
    with pytest.raises(error):
        served(lambda asked: answer).call("x", timeout_s=0.3)


def test_a_request_that_is_too_long_is_not_sent(tmp_path):
    with pytest.raises(ProtocolBroken, match="bytes"):
        EngineClient(tmp_path).call("x", blob="y" * LINE_BYTES_MAX)
