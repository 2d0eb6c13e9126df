"""Errors of the object model: volumes, sets, the configuration store, the way to the engine.

TrellisError
  VolumeError       UnknownVolume VolumeExists VolumeBusy VolumeUnsuitable VolumeTooSmall
                    BitmapTooSmall VolumeNotControlled VolumeUnguarded SizeRefused
                        SpaceShort PathRefused ExportUnavailable ExportNobody
                        BlockIoFailed BlockJobCancelled
  SetError          UnknownSet SetExists SetBusy SetNotEnabled SameHost NotASide RolesSwapped
                    UnknownJob SetDiffers
  Unsupported       asked for what this version does not do
  StoreError        StoreDamaged StoreFull StoreUnavailable StoreVersion
  UnreachableError  EngineUnreachable EngineSilent
                        SideUnreachable PeerUnreachable
  ProtocolBroken    an answer of the engine that is no answer
"""

from facade.contract.errors import TrellisError, UnreachableError


class VolumeError(TrellisError):
    """Branch: a volume is not what the command needs."""


class UnknownVolume(VolumeError):
    """The host has no volume of that name."""

    code = "unknown_volume"
    message = "There is no volume {volume} on {host}."
    hint = "`trellis volume list` shows the volumes of a host; names tell capital from small."


class VolumeExists(VolumeError):
    """A volume of that name is there already."""

    code = "volume_exists"
    message = "There is a volume {volume} on {host} already."
    hint = "Choose another name."


class VolumeBusy(VolumeError):
    """A volume has a role in a set already, or somebody is connected to it."""

    code = "volume_busy"
    message = "The volume {volume} is in use as {role} of {used_by}."
    hint = "A volume has one role in one set: choose another volume, or end that use first."


class VolumeUnsuitable(VolumeError):
    """A volume cannot serve: mounted, partitioned, written to by another program."""

    code = "volume_unsuitable"
    message = "The volume {volume} on {host} cannot be used as {role}: {reason}."
    hint = "End that use of it, or choose another volume."


class VolumeTooSmall(VolumeError):
    """The secondary is smaller than the primary."""

    code = "volume_too_small"
    message = (
        "The secondary volume {volume} has {size_bytes} bytes, fewer than the {needed_bytes} bytes"
        " of the primary volume."
    )
    hint = "Use a secondary volume of at least {needed_bytes} bytes."


class BitmapTooSmall(VolumeError):
    """A bitmap volume has no room for one bit per block."""

    code = "bitmap_too_small"
    message = (
        "The bitmap volume {volume} has {size_bytes} bytes; a bitmap for {data_bytes} bytes of data"
        " needs {needed_bytes} bytes."
    )
    hint = "Use a bitmap volume of at least {needed_bytes} bytes, or leave it out: one is made."


class BlockIoFailed(VolumeError):
    """A request of a job on blocks (compare, zero scan, digest, copy) failed."""

    code = "block_io_failed"
    message = "{volume}: {operation} at byte {offset_bytes} failed: {reason}."
    hint = "Nothing was tried again. Repair the volume or make room, then start the job anew."


class BlockJobCancelled(VolumeError):
    """A job on blocks was cancelled before its end."""

    code = "block_job_cancelled"
    message = "Cancelled after {done_bytes} of {total_bytes} bytes."
    hint = "Start it again: it begins anew."


class VolumeNotControlled(VolumeError):
    """The volume is not under SVI or STE control."""

    code = "volume_not_controlled"
    message = "The volume {volume} on {host} is not under control of Trellis, so it has no address."
    hint = "`trellis volume enable {volume}` puts it under control."


class VolumeUnguarded(VolumeError):
    """Serving the volume now would let writes pass that a set has to know of."""

    code = "volume_unguarded"
    message = (
        "The volume {volume} on {host} is not served: its set {set} is enabled, but the engine"
        " could not take it up, so writes would go unrecorded."
    )
    hint = "Restart `trellis-engine` when volume and bitmap are back, or disable {set} first."


class SizeRefused(VolumeError):
    """A volume of that size cannot be made."""

    code = "size_refused"
    message = "A volume of {size_bytes} bytes cannot be made: the size must be {rule}."
    hint = "Give another size."


class SpaceShort(VolumeError):
    """The file system has too little room."""

    code = "space_short"
    message = "{folder} has {free_bytes} bytes free; {volume} needs {needed_bytes} bytes."
    hint = "Make room there, or use a smaller size."


class VolumeWritable(VolumeError):
    """A volume is served for writing already, and read-only was asked for."""

    code = "volume_writable"
    message = "The volume {volume} on {host} is under control and can be written."
    hint = (
        "`trellis volume disable {volume}` ends that; then `trellis volume enable {volume}"
        " --read-only`."
    )


class ShrinkRefused(VolumeError):
    """A volume would lose what lies past its new end, and nobody said that it may."""

    code = "shrink_refused"
    message = (
        "The volume {volume} on {host} has {size_bytes} bytes; with {wanted_bytes} bytes it would"
        " lose what lies past them."
    )
    hint = "`trellis volume resize {volume} --size {wanted_bytes} --yes` cuts it off."


class PathRefused(VolumeError):
    """A file or folder cannot be used: the operating system's reason."""

    code = "path_refused"
    message = "{path} cannot be used: {reason}."
    hint = "Look at the path and its permissions."


class ExportUnavailable(VolumeError):
    """The engine cannot export volumes over TCP as it is set up."""

    code = "export_unavailable"
    message = "The volume {volume} cannot be exported from {host}: {reason}."
    hint = "Put `[export]` of the host's settings right (docs/exports.md) and restart its engine."


class ExportNobody(VolumeError):
    """An export that no client could use."""

    code = "export_nobody"
    message = "No client could use the export of {volume} on {host}: no list names one."
    hint = (
        "Name who may with `--client NAME`, or for all exports in `[export] clients`; NAME is what"
        " the client's certificate bears. `--plain` exports to this machine without TLS."
    )


class SetError(TrellisError):
    """Branch: a set is not what the command needs."""


class UnknownSet(SetError):
    """The host has no set of that name."""

    code = "unknown_set"
    message = "There is no {service} set {name} on {host}."
    hint = "`trellis replica list` shows the sets of a host; names tell capital from small."


class SetExists(SetError):
    """A set of that name is there already."""

    code = "set_exists"
    message = "There is a {service} set {name} on {host} already."
    hint = "Choose another name, or delete that set first."


class SetBusy(SetError):
    """Another operation works on the set at this moment."""

    code = "set_busy"
    message = "Another operation ({operation}) is working on the set {name}."
    hint = "Try again when it has ended; nothing was changed."


class SetNotEnabled(SetError):
    """The set is disabled, so the engine does not know it."""

    code = "set_not_enabled"
    message = "The set {name} is not enabled on {host}."
    hint = "`trellis replica enable {name}` enables it on both hosts."


class SetDiffers(SetError):
    """The two hosts know different sets under one name."""

    code = "set_differs"
    message = "The set {name} on {host} is not the one that {peer} has under that name."
    hint = "Delete it where it is left over: `trellis replica delete {name} --host {host}`."


class SameHost(SetError):
    """Both sides of a set would lie on one host."""

    code = "same_host"
    message = "Primary and secondary of {name} are both on {host}; a set joins two hosts."
    hint = "Name a volume of another host as secondary."


class NotASide(SetError):
    """A command reached a host that has no part in it."""

    code = "not_a_side"
    message = "{host} is neither primary nor secondary of {name}."
    hint = "Name one of the hosts of the set."


class UnknownJob(SetError):
    """No job of that id, or the set had none yet."""

    code = "unknown_job"
    message = "There is no job {job} on {host}."
    hint = "`trellis replica show` tells whether a synchronisation runs."


class Unsupported(TrellisError):
    """Asked for something that this version does not do."""

    code = "unsupported"
    message = "{what} is not possible in this version: {why}."
    hint = "{instead}"


class StoreError(TrellisError):
    """Branch: the configuration store could not be read or changed; nothing is half changed."""


class StoreDamaged(StoreError):
    """The store is not a database, or its pages contradict each other."""

    code = "store_damaged"
    message = "The configuration store {path} is damaged: {reason}."
    hint = "Nothing was changed. Restore the file from a backup; the volumes are not touched."


class StoreFull(StoreError):
    """No room to write the change."""

    code = "store_full"
    message = "The configuration store {path} cannot grow: {reason}. Nothing was changed."
    hint = "Make room in its file system, then repeat the command."


class StoreUnavailable(StoreError):
    """The store cannot be opened, or another process held it too long."""

    code = "store_unavailable"
    message = "The configuration store {path} cannot be used: {reason}. Nothing was changed."
    hint = "Look at the folder and its permissions, then repeat the command."


class StoreVersion(StoreError):
    """The store was written by a later version of Trellis."""

    code = "store_version"
    message = "The configuration store {path} has format {found}; this version knows {known}."
    hint = "Use the version of Trellis that wrote it, or a later one."


class EngineUnreachable(UnreachableError):
    """No engine answers on the control socket."""

    code = "engine_unreachable"
    message = "The engine of {host} does not run: nothing answers on {socket}."
    hint = "Start `trellis-engine` there, or `trellis up` where it made this federation."


class EngineGone(UnreachableError):
    """The engine ended, or was restarted, while it was asked."""

    code = "engine_gone"
    message = "The engine of {host} ended while it was asked for {method}."
    hint = "It may have done it: look with `trellis replica show` before you repeat the command."


class EngineSilent(UnreachableError):
    """The engine took the request and did not answer in time; it may still do it."""

    code = "engine_silent"
    message = "The engine of {host} did not answer {method} within {timeout_s} seconds."
    hint = "It may still do it: look with `trellis replica show` before you repeat the command."


class ProtocolBroken(TrellisError):
    """An answer that does not keep the control socket's rules: a bug."""

    code = "protocol_broken"
    message = "The engine's answer to {method} cannot be understood: {reason}."
    hint = "Engine and beans may be of different versions: restart both."


class SideUnreachable(UnreachableError):
    """The engine of one of the hosts of a set cannot be asked, so nothing was begun."""

    code = "side_unreachable"
    message = "Nothing was done for {name}: {reason}"
    hint = "Start `trellis-engine` on {host}, then repeat the command."


class PeerUnreachable(UnreachableError):
    """The other host of a set does not answer, so nothing was done on either."""

    code = "peer_unreachable"
    message = "The set {name} was not {done}: its other host {host} does not answer."
    hint = "Bring {host} back, or repeat it with --force: that removes only this host's side."
