"""Errors of the control socket and of the engine's start.

TrellisError
  RequestRefused  the request is none that the engine knows
  EngineFault     a bug: the engine goes on
  EngineRunning   another engine has this host's folder
  AddressTaken    an address cannot be listened on
"""

from facade.contract.errors import TrellisError


class RequestRefused(TrellisError):
    """The request is none that the engine knows."""

    code = "request_refused"
    message = "The engine does not take this request: {reason}."
    hint = "Engine and beans may be of different versions: restart both."


class EngineFault(TrellisError):
    """A bug in the engine; data keeps flowing."""

    code = "engine_fault"
    message = "The engine failed to do it: {reason}."
    hint = "The engine's log has more; please report it."


class EngineRunning(TrellisError):
    """Another engine has this host's data folder."""

    code = "engine_running"
    message = "An engine (process {pid}) serves {data_dir} already."
    hint = "One engine serves a host; end the other first."


class AddressTaken(TrellisError):
    """The link address cannot be listened on."""

    code = "address_taken"
    message = "The link cannot listen at {address}: {reason}."
    hint = "Choose another `[link] listen`."
