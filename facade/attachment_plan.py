"""How a volume gets a local path: by which helper, with what command, and what is to be done.

Pure functions over what `facade.attachment_host` finds.

A path is a symbolic link to the target: the device of a kernel nbd client, or the one file that
nbdfuse serves in a folder of ours. The folder is there only while it is mounted, so a path whose
helper is gone leads nowhere, and no program can write to a file that is not the volume.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from facade.attachment_errors import AttachmentUnavailable

NBD: Final = "nbd"
NBDFUSE: Final = "nbdfuse"
HELPERS: Final = (NBD, NBDFUSE)
PROGRAMS: Final = {NBD: "nbd-client", NBDFUSE: "nbdfuse"}

SECTOR_BYTES: Final = 512


@dataclass(frozen=True)
class Means:
    """What a host has for attaching volumes."""

    nbd_client: str | None  # where the program is
    has_nbd: bool  # the kernel has nbd devices
    free_device: str | None  # an nbd device that nobody uses
    nbdfuse: str | None
    has_fuse: bool


@dataclass(frozen=True)
class Found:
    """What there is of an attachment at this moment; times are in clock ticks since boot."""

    helper_started: int | None  # None: its helper does not run
    is_served: bool  # the mount, or the device's connection, is there
    engine_started: int | None  # None: the engine does not run
    clients: int | None  # NBD clients of the volume; None: the engine does not serve it


@dataclass(frozen=True)
class Verdict:
    """`state`: `up`; `waiting` for the engine; `broken`, to be made anew. `reason`: why not up."""

    state: str
    reason: str | None = None


def choose(means: Means, volume: str, host: str, wanted: str | None = None) -> str:
    """Return the helper: kernel nbd where there is one, else nbdfuse, or the one that is wanted.

    Raises AttachmentUnavailable.
    """
    problems = {NBD: _nbd_problem(means), NBDFUSE: _nbdfuse_problem(means)}
    candidates = HELPERS if wanted is None else (wanted,)
    for helper in candidates:
        if problems[helper] is None:
            return helper
    reason = ", and ".join(str(problems[helper]) for helper in candidates)
    raise AttachmentUnavailable(volume=volume, host=host, reason=reason)


def command(program: str, helper: str, uri: str, target: str, pid_file: str,
            read_only: bool) -> list[str]:  # fmt: skip
    """Return the helper's command; it stays in the foreground until it is ended."""
    if helper == NBDFUSE:
        return [program, *(["-r"] if read_only else []), "-P", pid_file, target, uri]
    parts = urlsplit(uri)
    socket = parse_qs(parts.query)["socket"][0]
    # Without netlink the client lives as long as the connection, so that its end can be seen.
    return [
        program, "-unix", socket, target, "-name", unquote(parts.path.removeprefix("/")),
        "-block-size", str(SECTOR_BYTES), *(["-readonly"] if read_only else []),
        "-nonetlink", "-nofork",
    ]  # fmt: skip


def disconnect_command(program: str, device: str) -> list[str]:
    """Return the command that ends a kernel nbd connection."""
    return [program, "-d", device]


def is_helper(argv: list[str], helper: str, target: str, volume: str) -> bool:
    """Whether a process with this command line is the helper that serves the target.

    Told by what it does and not by a number: a process that has inherited the helper's id after a
    restart of the machine is none.
    """
    if not argv or argv[0].rpartition("/")[2] != PROGRAMS[helper] or target not in argv[1:]:
        return False
    # A device says nothing of whose it is; the folder of a mount is ours alone.
    return helper == NBDFUSE or volume in argv[1:]


def judge(found: Found) -> Verdict:
    """Return whether an attachment works, and if not, why."""
    if found.engine_started is None:
        return Verdict("waiting", "the engine does not run")
    if found.clients is None:
        return Verdict("waiting", "the engine does not serve the volume")
    if found.helper_started is None:
        return Verdict("broken", "its helper had ended")
    if not found.is_served:
        return Verdict("broken", "its mount or device was gone")
    # Neither helper connects again to an engine that has come back.
    if found.helper_started < found.engine_started or found.clients == 0:
        return Verdict("broken", "the engine had ended its connection")
    return Verdict("up")


def _nbd_problem(means: Means) -> str | None:
    if not means.has_nbd:
        return "its kernel has no nbd devices (/dev/nbd0)"
    if means.nbd_client is None:
        return "nbd-client is not installed"
    return None if means.free_device else "every nbd device is taken"


def _nbdfuse_problem(means: Means) -> str | None:
    if means.nbdfuse is None:
        return "nbdfuse is not installed"
    return None if means.has_fuse else "it has no /dev/fuse"
