"""Names, errors and events as every tier uses them."""

import importlib
import pickle
from pathlib import Path

import pytest

import facade.replication_events
import facade.volume_events
from facade.contract import names
from facade.contract.errors import (
    BadName,
    InternalError,
    RemoteError,
    TrellisError,
    error_from_wire,
    error_to_wire,
    fill,
    known_errors,
    template_fields,
)
from facade.contract.events import (
    SEVERITIES,
    EventKind,
    event_from_wire,
    known_kinds,
    new_event,
    register,
)
from facade.errors import VolumeBusy

ROOT = Path(__file__).parents[2]
PACKAGES = ("beans", "broker", "console", "facade", "notifier")


@pytest.mark.parametrize(
    ("check", "name", "result"),
    [
        (names.check_host, "Host_a", "host_a"),
        (names.check_host, "h" * 63, "h" * 63),
        (names.check_volume, "Volume_a", "Volume_a"),
        (names.check_volume, "v+1.img@x=y-z", "v+1.img@x=y-z"),
        (names.check_set, "9" * 100, "9" * 100),
    ],
)
def test_proper_names_pass(check, name, result):
    assert check(name) == result


@pytest.mark.parametrize("name", ["", "a.b", "a b", "h" * 64, "hö", "a/b", "a:b", "\u212a"])
def test_other_host_names_are_refused(name):
    with pytest.raises(BadName):
        names.check_host(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-v", ".hidden", "a/b", "a:b", "v\n", "ü", "v" * 101, "a b", "a\0"]
)
def test_other_volume_names_are_refused(name):
    for check in (names.check_volume, names.check_set, names.check_group):
        with pytest.raises(BadName):
            check(name)


def test_an_error_comes_back_as_its_class_with_its_fields():
    error = VolumeBusy(volume="v", used_by="s", role="bitmap")
    back = error_from_wire(error_to_wire(error))
    assert type(back) is VolumeBusy
    assert back.data == error.data
    assert (str(back), back.hint, back.role) == (str(error), error.hint, "bitmap")
    assert type(pickle.loads(pickle.dumps(error))) is VolumeBusy
    with pytest.raises(AttributeError):
        _ = back.nothing


def test_an_error_without_a_field_of_its_templates_is_a_mistake_of_the_raiser():
    with pytest.raises(TypeError, match="role"):
        VolumeBusy(volume="v", used_by="s")


def test_an_unknown_or_misshapen_error_keeps_its_code_and_words():
    wire = {"code": "of_tomorrow", "message": "It {is}.", "hint": "Wait.", "data": {"a": 1}}
    back = error_from_wire(wire)
    assert type(back) is RemoteError
    assert error_to_wire(back) == wire
    assert str(pickle.loads(pickle.dumps(back))) == "It {is}."
    assert type(error_from_wire({"code": "volume_busy", "data": {}})) is RemoteError
    assert type(error_from_wire({"data": 7})) is RemoteError


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("No such file", "x: No such file. Look at x."),
        ("No such file.", "x: No such file. Look at x."),
        ("and so on...", "x: and so on... Look at x."),
        ("..", "x: .. Look at x."),
        ("", "x: . Look at x."),
    ],
)
def test_a_sentence_ends_once(reason, text):
    assert fill("{path}: {reason}. Look at {path!s:s}.", {"path": "x", "reason": reason}) == text


def test_a_field_that_is_missing_is_a_mistake():
    assert fill("{{{a:>3}}} {b!r}", {"a": 1, "b": "x."}) == "{  1} 'x.'"
    with pytest.raises(KeyError, match="b"):
        fill("{a}{b}", {"a": 1})


def test_a_foreign_exception_is_an_internal_error():
    assert error_to_wire(KeyError("x"))["code"] == InternalError.code


def test_a_code_belongs_to_one_class():
    with pytest.raises(TypeError, match="bad_name"):
        type("Other", (TrellisError,), {"code": "bad_name"})


@pytest.fixture(scope="module")
def product():
    """Every module of the product that declares errors or kinds of events."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.stem.endswith(("errors", "events")):
                importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_every_error_says_what_happened_and_what_to_do(product):
    errors = {
        code: cls
        for code, cls in known_errors().items()
        if cls.__module__.partition(".")[0] in PACKAGES
    }
    assert len(errors) > 60
    for code, cls in errors.items():
        assert cls.message, code
        assert cls.hint, code
        fields = dict.fromkeys(template_fields(cls), 1)
        assert str(cls(**fields)).endswith((".", ":", "1")), code


def test_every_kind_of_event_says_what_happened_and_what_to_do(product):
    assert len(known_kinds()) > 20
    for kind in known_kinds():
        assert kind.severity in SEVERITIES
        assert kind.sentence
        assert kind.advice
        event = new_event(
            kind.service, kind.name, "host_a", "S", **dict.fromkeys(kind.data_fields(), "x")
        )
        assert event.routing_key() == f"host_a.{kind.service}.{kind.severity}.{kind.name}"
        assert event_from_wire({**event.to_wire(), "later": 1}) == event
        assert "{" not in event.text + event.advice


def test_each_state_of_a_set_has_its_event():
    states = ("logging", "syncing", "reverse_syncing", "replicating", "queuing", "disabled")
    kinds = {kind.name for kind in facade.replication_events.STATE_KINDS}
    assert kinds == {f"state_{state}" for state in states}


def test_two_kinds_of_one_name_are_refused():
    known = facade.volume_events.VOLUME_KINDS[0]
    register(known)
    with pytest.raises(ValueError, match="twice"):
        register(EventKind(known.service, known.name, "error", "Other."))
    with pytest.raises(ValueError, match="severity"):
        register(EventKind("x", "y", "terrible", "Other."))


def test_a_misshapen_event_is_refused():
    event = new_event("engine", "engine_started", "host_a", "")
    for key in event.to_wire():
        with pytest.raises(ValueError, match=key):
            event_from_wire({**event.to_wire(), key: 7})
