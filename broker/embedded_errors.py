"""Errors of the embedded RabbitMQ and Redis.

TrellisError
+- EmbeddedError            the private server of this machine
   +- ServerMissing         its program is not installed
   +- ServerFolderUnusable  its folder cannot be written
   +- ServerPortTaken       somebody else listens on its port
   +- ServerPathTooLong     a Unix socket's path does not fit
   +- ServerDied            it ended before it was ready
   +- ServerNotReady        it did not answer in time
"""

from facade.contract.errors import TrellisError


class EmbeddedError(TrellisError):
    """Any failure of a server that Trellis runs as its own child process."""

    code = "embedded_error"
    message = "The embedded {server} failed: {reason}."
    hint = "Look into its log, {log}."


class ServerMissing(EmbeddedError):
    """The server's program is not on this machine."""

    code = "server_missing"
    message = "The embedded {server} needs {program}, which is not installed."
    hint = "Install the Debian package {package}; `make setup` does it."


class ServerFolderUnusable(EmbeddedError):
    """The server's folder or one of its files cannot be written."""

    code = "server_folder_unusable"
    message = "The embedded {server} cannot write {path}: {reason}."
    hint = "Free some space there or choose another folder with --dir."


class ServerPortTaken(EmbeddedError):
    """A port that the server needs is in use."""

    code = "server_port_taken"
    message = "The embedded {server} needs 127.0.0.1 port {port} ({purpose}), which is in use."
    hint = "End the process that listens there, or choose another port."


class ServerPathTooLong(EmbeddedError):
    """A Unix socket's path is longer than the kernel takes."""

    code = "server_path_too_long"
    message = "The embedded {server}'s socket {path} is {length} bytes long; at most {limit} fit."
    hint = "Choose a folder with a shorter path."


class ServerDied(EmbeddedError):
    """The server ended before it was ready."""

    code = "server_died"
    message = "The embedded {server} ended with status {status} before it was ready: {reason}"
    hint = "Look into its log, {log}."


class ServerNotReady(EmbeddedError):
    """The server lives but did not answer in time."""

    code = "server_not_ready"
    message = "The embedded {server} did not answer within {timeout_s:g} s."
    hint = "Look into its log, {log}; a busy machine may need a second try."
