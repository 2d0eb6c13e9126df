"""Errors of attachments: paths under which local programs open a volume.

VolumeError (facade.errors)
  VolumeAttached  AttachmentInUse  AttachPathTaken  AttachmentUnavailable  AttachmentFailed
  DetachUnflushed
"""

from facade.errors import VolumeError


class VolumeAttached(VolumeError):
    """A volume has a local path, so it is not free for what was asked."""

    code = "volume_attached"
    message = "The volume {volume} is attached to {path} on {host}."
    hint = "`trellis volume detach {volume} --host {host}` ends that; then repeat the command."


class AttachmentInUse(VolumeError):
    """The path cannot be taken away: somebody works with it."""

    code = "attachment_in_use"
    message = "The volume {volume} stays attached to {path}: it is {user}."
    hint = "End that use (umount, losetup -d, the program), then detach again."


class AttachPathTaken(VolumeError):
    """There is something at the path already; it is never overwritten."""

    code = "attach_path_taken"
    message = "{path} exists on {host} already, and {volume} is not attached to it."
    hint = "Name a path that does not exist yet, in a folder that does."


class AttachmentUnavailable(VolumeError):
    """The host can make no local path of a volume."""

    code = "attachment_unavailable"
    message = "{host} cannot give {volume} a path: {reason}."
    hint = (
        "It needs nbdfuse and /dev/fuse (package libnbd-bin), or nbd-client and /dev/nbd0"
        " (`modprobe nbd`); programs that speak NBD use what `trellis volume uri {volume}` prints."
    )


class AttachmentFailed(VolumeError):
    """The helper program did not do its part; nothing is left of the attempt."""

    code = "attachment_failed"
    message = "{helper} could not attach {volume} on {host}: {reason}."
    hint = "Remove that cause, then attach again."


class DetachUnflushed(VolumeError):
    """The volume was detached, but its last flush failed."""

    code = "detach_unflushed"
    message = "{volume} was detached from {path}, but its last flush failed: {reason}."
    hint = "Writes since the last flush that succeeded may be missing; look at the engine's log."
