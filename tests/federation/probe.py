"""A data service for these tests: its bean does one odd thing per method."""

import threading
import time

from marshmallow import fields

from beans.base import Bean, job, method
from facade.contract import events
from facade.contract.errors import TrellisError

POKED = events.EventKind(
    "probe", "poked", "warning", "{subject} was poked {count} times", "Stop poking."
)


class ProbeBusy(TrellisError):
    """What a typed error across hosts looks like."""

    code = "probe_busy"
    message = "The volume {volume} is used by {used_by}."
    hint = "Wait."


class ProbeBean(Bean):
    """One odd thing per method."""

    name = "probe"

    def start(self):
        self.done = 0
        self.lock = threading.Lock()

    @method(args={"text": fields.String(required=True)}, result={"text": fields.String()})
    def echo(self, text):
        return {"text": text}

    @method(result={"caller": fields.String()})
    def who(self):
        return {"caller": self.caller()}

    @method(args={"volume": fields.String(required=True)})
    def refuse(self, volume):
        raise ProbeBusy(volume=volume, used_by=[{"service": "replication", "set": "S"}])

    @method()
    def crash(self):
        raise ZeroDivisionError("nobody foresaw this")

    @method(timeout_s=5.0)
    def exit(self):
        raise SystemExit(3)

    @method(result={"number": fields.Integer(required=True, strict=True)})
    def lie(self):
        return {"number": "many"}

    @method(args={"seconds": fields.Float()}, result={"seconds": fields.Float()}, timeout_s=5.0)
    def slow(self, seconds):
        self.stopping.wait(seconds)
        return {"seconds": seconds}

    @method(
        args={"seconds": fields.Float(load_default=0.0)},
        result={"done": fields.Integer()},
        idempotent=False,
    )
    def once(self, seconds):
        with self.lock:
            self.done += 1
            done = self.done
        time.sleep(seconds)
        return {"done": done}

    @method(result={"done": fields.Integer()})
    def done_so_far(self):
        return {"done": self.done}

    @method(
        args={"host": fields.String(), "seconds": fields.Float()},
        result={"text": fields.String()},
        coordinates=True,
    )
    def coordinate(self, host, seconds):
        self.federation.proxy(host, "probe").slow(seconds=seconds)
        return {"text": "done"}

    @method(args={"host": fields.String()}, peer=True)
    def wander(self, host):
        self.federation.proxy(host, "probe").echo(text="from a leaf")

    @method(
        args={"hosts": fields.List(fields.String())},
        result={"depth": fields.Integer()},
        timeout_s=8.0,
    )
    def chain(self, hosts):
        if not hosts:
            return {"depth": 0}
        answer = self.federation.proxy(hosts[0], "probe").chain(hosts=hosts[1:])
        return {"depth": answer["depth"] + 1}

    @method(args={"subject": fields.String(), "count": fields.Integer()})
    def poke(self, subject, count):
        for number in range(count):
            self.post(events.new_event("probe", "poked", self.host, subject, count=number))

    @method(result={"task_id": fields.String()})
    def begin(self):
        return {"task_id": self.follow("watch", steps=3)}

    @job(args={"steps": fields.Integer(required=True)})
    def watch(self, progress, steps):
        for step in range(steps):
            progress(done_bytes=step + 1, total_bytes=steps)


BEAN = ProbeBean
