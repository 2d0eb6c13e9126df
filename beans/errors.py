"""Errors of bean calls.

TrellisError
+- UnreachableError                  the command line ends with status 3
|  +- BeanUnavailable                no such bean is there now
|  +- BeanLost                       it ended with the call in hand
|  +- BeanTimeout                    it is there and did not answer in time
|  +- ResultStoreUnavailable         Redis does not answer
+- BeanCrashed                       a bug in the bean: an exception that nobody foresaw
+- BeanBusy                          too much at once, safe to try again
+- CallError                         the call itself is wrong: a bug, or another version
   +- UnknownMethod  BadArguments  BadResult  InterfaceMismatch  BadEnvelope
   +- CallTooDeep  PeerNotLeaf
+- UnknownBean                       this build has no such bean
"""

from facade.contract.errors import TrellisError, UnreachableError


class BeanUnavailable(UnreachableError):
    """Nobody consumes the bean's queue; `last_seen` is a time in UTC, or `never`."""

    code = "bean_unavailable"
    message = "The bean {bean} of host {host} is not there (last seen: {last_seen})."
    hint = "Check the host's name and that trellis-beans runs on it; `trellis host list` shows all."


class BeanTimeout(UnreachableError):
    """No answer came in time; whether the call was done is not known."""

    code = "bean_timeout"
    message = "The bean {bean} of host {host} did not answer {method} within {timeout_s:g} s."
    hint = "It may still do it: look at the state before you repeat the command."


class BeanLost(UnreachableError):
    """The bean's worker ended while it had the call; whether the call was done is not known."""

    code = "bean_lost"
    message = "The bean {bean} of host {host} ended while it answered {method}."
    hint = "It starts again by itself; look at the state before you repeat the command."


class ResultStoreUnavailable(UnreachableError):
    """Redis, where answers are left, cannot be reached."""

    code = "result_store_unavailable"
    message = "Redis, where beans leave their answers, cannot be reached: {reason}."
    hint = "Start it (`trellis up`), or correct [redis] url; the data path goes on without it."


class BeanCrashed(TrellisError):
    """The bean's method ended with an exception that is no TrellisError."""

    code = "bean_crashed"
    message = "The bean {bean} of host {host} failed in {method}: {kind}: {text}"
    hint = "This is a bug; the log of trellis-beans on {host} has the details."


class BeanBusy(TrellisError):
    """As many coordinating calls as may run do; nothing was begun."""

    code = "bean_busy"
    message = "The bean {bean} of host {host} already coordinates {limit} operations."
    hint = "Try again in a moment; nothing was changed."


class CallError(TrellisError):
    """The call is not one that the bean can answer."""

    code = "call_error"
    message = "The call of {bean}.{method} on {host} is wrong: {problem}."
    hint = "Install the same version of Trellis on both hosts."


class UnknownMethod(CallError):
    """The bean exports no method of that name."""

    code = "unknown_method"
    message = "The bean {bean} of host {host} has no method {method}."


class BadArguments(CallError):
    """The arguments do not fit the method's schema."""

    code = "bad_arguments"
    message = "{bean}.{method} on {host} does not take these arguments: {problem}."


class BadResult(CallError):
    """The answer does not fit the method's schema."""

    code = "bad_result"
    message = "{bean}.{method} on {host} gave an answer of another form: {problem}."


class InterfaceMismatch(CallError):
    """Caller and bean have different versions of the bean's interface."""

    code = "interface_mismatch"
    message = "The bean {bean} of host {host} speaks version {theirs}, this process {ours}."


class BadEnvelope(CallError):
    """The header of the call is missing or malformed."""

    code = "bad_envelope"
    message = "The call of {bean}.{method} on {host} has a wrong envelope: {problem}."


class CallTooDeep(CallError):
    """Calls within calls are limited, so that a circle of beans ends."""

    code = "call_too_deep"
    message = "{bean}.{method} on {host} was called {depth} calls deep, of at most {limit}."
    hint = "This is a bug: beans call each other in a circle."


class PeerNotLeaf(CallError):
    """A peer operation tried to call another host."""

    code = "peer_not_leaf"
    message = "A peer operation on {ours} tried to call {bean}.{method} on {host}."
    hint = "This is a bug: what one host does for another calls no third one."


class UnknownBean(TrellisError):
    """This build has no bean of that name."""

    code = "unknown_bean"
    message = "There is no bean {bean}; this build has {known}."
    hint = "Check the spelling."
