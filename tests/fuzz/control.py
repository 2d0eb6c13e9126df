"""Lines on the control socket under arbitrary bytes: each has one answer, and none is a fault."""

import json
import logging

from facade.engine.control import ControlServer

SERVER = ControlServer.__new__(ControlServer)
SERVER.methods = {
    "ping": lambda: "pong",
    "show": lambda name, size_bytes=0: {"name": name, "size_bytes": size_bytes},
}
logging.disable()


def fuzz_one(data: bytes) -> None:
    """Ask with `data`; the answer is one line, and blames the request when it is an error."""
    line = data.partition(b"\n")[0] + b"\n"
    told = SERVER.answer(line)
    assert told.endswith(b"\n")
    assert told.count(b"\n") == 1
    answer = json.loads(told)
    assert set(answer) in ({"id", "result"}, {"id", "error"})
    if "error" in answer:
        assert answer["error"]["code"] == "request_refused", answer["error"]
