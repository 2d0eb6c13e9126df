"""The root of every package's errors, and their form on the wire.

A leaf is a class with a `code` (stable, unique over all packages), a `message` and a `hint`: format
templates over the keyword fields. It registers itself when it is defined, so that the same class
comes back out of `error_from_wire` in any process that has imported it.

    TrellisError
      UsageError           the command cannot be meant like that         exit status 2
      UnreachableError     nothing was asked, nobody is there to answer  exit status 3
      BadName  SettingsInvalid  SettingsMissing  InternalError
      RemoteError          an error whose class is not known in this process
"""

import string
from collections.abc import Mapping
from typing import Any

_registry: dict[str, type["TrellisError"]] = {}


def _register(cls: type["TrellisError"]) -> None:
    other = _registry.get(cls.code)
    if other is not None and (other.__module__, other.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise TypeError(
            f"error code {cls.code} is both {other.__qualname__} and {cls.__qualname__}"
        )
    _registry[cls.code] = cls


class TrellisError(Exception):
    """Root of all errors that a person may read.

    `str(e)` is the message, `e.hint` the way out, `e.data` the fields, also as attributes.
    Raises TypeError on construction when a field that a template names is missing.
    """

    code: str = "trellis_error"
    message: str = ""
    hint: str = ""
    exit_status: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register a leaf: a class that defines its own code."""
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            _register(cls)

    def __init__(self, **fields: Any) -> None:
        """Fill the templates with the fields."""
        missing = sorted(template_fields(type(self)) - fields.keys())
        if missing:
            raise TypeError(f"{type(self).__name__} needs the fields {', '.join(missing)}")
        self.data: dict[str, Any] = fields
        self.message = fill(type(self).message, fields)
        self.hint = fill(type(self).hint, fields)
        super().__init__(self.message)

    def __getattr__(self, name: str) -> Any:
        """Give a field as an attribute."""
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"{type(self).__name__} has no field {name}")

    def __str__(self) -> str:
        """Give the message."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the fields, also across processes."""
        return (_rebuild, (error_to_wire(self),))


class UsageError(TrellisError):
    """Branch: the command cannot be meant like that; exit status 2."""

    exit_status = 2


class UnreachableError(TrellisError):
    """Branch: a bean, broker or engine is not there to answer; exit status 3."""

    exit_status = 3


class BadName(TrellisError):
    """A host, volume, set or group has a name that is not allowed."""

    code = "bad_name"
    message = "{name!r} cannot be the name of a {kind}: a name is {rule}."
    hint = "Choose another name."


class SettingsInvalid(TrellisError):
    """A settings file or variable holds something that is not understood."""

    code = "settings_invalid"
    message = "{source}: {problem}."
    hint = "Correct it; docs/settings.md lists every setting."


class SettingsMissing(TrellisError):
    """A setting that this process needs is not given."""

    code = "settings_missing"
    message = "{setting} is not set: {purpose}."
    hint = "Set it in the settings file ([{section}] {key}) or as {variable}."


class InternalError(TrellisError):
    """An exception that nobody foresaw: a bug."""

    code = "internal_error"
    message = "Trellis failed in a way it does not know: {kind}: {text}"
    hint = "Nothing that you did wrong; the log has the details. Please report it."


class RemoteError(TrellisError):
    """An error from another process whose class is not known here; it keeps its own code."""

    def __init__(
        self, code: str, message: str, hint: str = "", data: dict[str, Any] | None = None
    ) -> None:
        """Keep what the other process said."""
        super().__init__(**(data or {}))
        self.args = (message,)
        self.code = code
        self.message = message
        self.hint = hint


def template_fields(cls: type[TrellisError]) -> set[str]:
    """Return the field names that an error's message and hint are made of."""
    return fields_of(cls.message) | fields_of(cls.hint)


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Return a filled format template; a field that ends in a full stop needs none after it.

    Reasons come from libraries and other errors: some are whole sentences. Raises KeyError for a
    field that is missing.
    """
    text, ended = "", False
    for literal, name, form, conversion in string.Formatter().parse(template):
        text += literal.removeprefix(".") if ended else literal
        ended = False
        if name is not None:
            converted = f"!{conversion}" if conversion else ""
            value = f"{{{name}{converted}:{form}}}".format(**fields)
            text, ended = text + value, value.endswith(".")
    return text


def fields_of(template: str) -> set[str]:
    """Return the field names of a format template."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def known_errors() -> dict[str, type[TrellisError]]:
    """Return every leaf imported in this process, by code."""
    return dict(_registry)


def error_to_wire(error: BaseException) -> dict[str, Any]:
    """Return the wire form, `{"code", "message", "hint", "data"}`, of any exception."""
    if not isinstance(error, TrellisError):
        error = InternalError(kind=type(error).__name__, text=str(error))
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "data": dict(error.data),
    }


def error_from_wire(wire: Mapping[str, Any]) -> TrellisError:
    """Return the error of a wire form: its own class where known here, else a RemoteError."""
    code = str(wire.get("code", "remote_error"))
    message = str(wire.get("message", "an error without a message"))
    hint = str(wire.get("hint") or "")
    raw = wire.get("data")
    data = {str(key): value for key, value in raw.items()} if isinstance(raw, Mapping) else {}
    cls = _registry.get(code)
    if cls is None or not template_fields(cls) <= data.keys():
        return RemoteError(code, message, hint, data)
    try:
        return cls(**data)
    except (TypeError, ValueError):  # another version's fields do not fit this one's templates
        return RemoteError(code, message, hint, data)


def _rebuild(wire: dict[str, Any]) -> TrellisError:
    return error_from_wire(wire)
