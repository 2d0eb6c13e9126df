"""What goes wrong when a federation is brought up or taken down on this machine.

TrellisError
  SupervisorError
    AlreadyUp          another supervisor runs in the same folder
    FolderUnusable     the federation's folder cannot be written, or is somebody else's
    FederationDamaged  federation.json is not understood
    DiskFull           too little space to start
    PortTaken          somebody else listens on a recorded port
    CertificateFailed  certificates for exports cannot be made
    ProgramMissing     a program of ours is not installed
    ChildFailed        a part ended before it was ready
    NotReady           not every part was ready in time
    AdvertiseUnknown   --advertise for a host that is not here
    WouldNotEnd        a process outlived SIGKILL
UnreachableError
  NothingToTakeDown    there is no federation in the folder
"""

from facade.contract.errors import TrellisError, UnreachableError, UsageError


class AlreadyUp(TrellisError):
    """Another supervisor holds the folder's lock."""

    code = "already_up"
    message = "The federation in {directory} is up already (process {pid})."
    hint = "Use it, take it down with `trellis down --dir {directory}`, or choose another --dir."


class FolderUnusable(TrellisError):
    """A folder that must be written privately cannot be."""

    code = "folder_unusable"
    message = "{path} cannot be used: {reason}."
    hint = "Give another folder with --dir, or correct its owner and mode."


class FederationDamaged(TrellisError):
    """The record of the federation's names, ports and secrets cannot be read."""

    code = "federation_damaged"
    message = "{path} is not a federation's record: {reason}."
    hint = "Restore it, or move it away: `up` then makes new secrets and keeps volumes and sets."


class DiskFull(TrellisError):
    """Less space than the broker and the stores need to start."""

    code = "disk_full"
    message = "{directory} has {free_mb} MiB free; a federation needs {needed_mb} MiB to start."
    hint = "Free some space, or choose another folder with --dir."


class PortTaken(TrellisError):
    """A port that others rely on is in use by a stranger."""

    code = "port_taken"
    message = "{purpose} needs {address}, which another process listens on."
    hint = "End that process, or remove the port from {path} and another one is chosen."


class ProgramMissing(TrellisError):
    """A program of this installation is not where it must be."""

    code = "program_missing"
    message = "{program} is not installed beside {beside}."
    hint = "Install Trellis there: `make build`, or `pip install .`."


class CertificateFailed(TrellisError):
    """Certificates for exports cannot be made."""

    code = "certificate_failed"
    message = "The certificates of this federation's exports cannot be made: {reason}."
    hint = "Install the package openssl, or look at the folder `tls` below the federation's."


class ChildFailed(TrellisError):
    """A part of the federation ended before it was ready."""

    code = "child_failed"
    message = "{name} ended with status {status} before it was ready: {reason}"
    hint = "Look into {log}."


class NotReady(TrellisError):
    """Some parts did not answer in time."""

    code = "not_ready"
    message = "After {timeout_s:g} s these did not answer: {missing}."
    hint = "Look into {log}; a busy machine may need a second try."


class AdvertiseUnknown(UsageError):
    """`--advertise` names a host that the federation does not have, or no address."""

    code = "advertise_unknown"
    message = "--advertise {text}: {problem}."
    hint = "Give HOST=ADDRESS:PORT with one of the hosts {hosts}."


class WouldNotEnd(TrellisError):
    """A process is still there after SIGKILL: it hangs in the kernel."""

    code = "would_not_end"
    message = "{name} (process {pid}) did not end within {timeout_s:g} s."
    hint = "It waits for a device; look at /proc/{pid}/stack and at the kernel's log."


class NothingToTakeDown(UnreachableError):
    """There is no federation in the folder."""

    code = "no_federation_here"
    message = "There is no federation in {directory}."
    hint = "Say where it is with --dir or TRELLIS_DIR."
