"""Errors of the federation.

TrellisError
+- UnreachableError
|  +- BrokerUnavailable    nobody answers at the broker's addresses, or it stopped answering
+- BrokerRefused           it answers and says no: password, permission, virtual host
+- MalformedMessage        a message that is not what its exchange carries
+- OutboxFull              the local outbox is at its limit
+- OutboxFailed            the local outbox cannot be written
"""

from facade.contract.errors import TrellisError, UnreachableError


class BrokerUnavailable(UnreachableError):
    """No broker answers; what was asked was not done, unless the reason says it may have been."""

    code = "broker_unavailable"
    message = "The message broker at {address} cannot be reached: {reason}."
    hint = "Start it (`trellis up`), or correct [broker] urls; the data path goes on without it."


class BrokerRefused(TrellisError):
    """The broker answers and refuses."""

    code = "broker_refused"
    message = "The message broker at {address} refuses: {reason}."
    hint = "Check user, password and virtual host in [broker] urls, and the user's permissions."


class MalformedMessage(TrellisError):
    """A message from the broker cannot be read; it is logged and dropped."""

    code = "malformed_message"
    message = "A message on {exchange} with the key {routing_key} was dropped: {reason}."
    hint = "Look for the sender in the broker's log; its version may be another one."


class OutboxFull(TrellisError):
    """The outbox holds as many unsent events as it may."""

    code = "outbox_full"
    message = (
        "{path} holds {count} events not yet relayed, of at most {limit}; the event was kept back."
    )
    hint = "Bring the broker back; the station then relays them and the engine's follow."


class OutboxFailed(TrellisError):
    """SQLite could not write or read the outbox."""

    code = "outbox_failed"
    message = "The outbox of events {path} failed: {reason}."
    hint = "Free space or repair the file; the engine keeps its own events until then."
