"""Errors of the link between engines and of what travels over it.

TrellisError
  LinkError    LinkUnreachable LinkBroken LinkRefused LinkVersion LinkNotPrivate
  TargetError  TargetInUse WouldLoseWrites PeerNotReady SizeDiffers
"""

from facade.contract.errors import TrellisError


class LinkError(TrellisError):
    """Branch: the two engines could not talk."""


class LinkUnreachable(LinkError):
    """Nothing answers at the other engine's link address."""

    code = "link_unreachable"
    message = "The engine of {peer} does not answer at {address} ({reason})."
    hint = "Look at {peer} and the network between; changes are being recorded meanwhile."


class LinkBroken(LinkError):
    """The connection ended or carried what it must not."""

    code = "link_broken"
    message = "The link to {peer} broke: {reason}."
    hint = "Repeat the synchronisation; it goes on with what is left."


class LinkRefused(LinkError):
    """One side could not prove that it belongs to the domain."""

    code = "link_refused"
    message = "The link to {peer} was refused: {reason}."
    hint = "Both hosts need the same `[link] secret` and each other's right names."


class LinkNotPrivate(LinkError):
    """The link would leave the loopback, where it is not encrypted."""

    code = "link_not_private"
    message = "The link address {address} is off the loopback, and links are not encrypted yet."
    hint = "Put a tunnel between, or allow it with `[link] plain` on a network that is private."


class LinkVersion(LinkError):
    """The two engines speak different versions of the link protocol."""

    code = "link_version"
    message = "{peer} speaks version {theirs} of the link protocol, this host version {ours}."
    hint = "Bring both hosts to the same version of Trellis."


class TargetError(TrellisError):
    """Branch: the volume that would be overwritten must not be, or cannot be."""


class TargetInUse(TargetError):
    """Somebody is connected to the target who could write."""

    code = "target_in_use"
    message = "The volume {volume} on {host} would be overwritten, but {clients} client(s) use it."
    hint = "Disconnect or unmount it on {host}, then repeat the synchronisation."


class WouldLoseWrites(TargetError):
    """The target was written by applications since the sides parted."""

    code = "would_lose_writes"
    message = (
        "The synchronisation would undo writes of applications to {blocks} block(s) of {volume}"
        " on {host}."
    )
    hint = "If those writes may be lost, say so: `--keep primary`."


class PeerNotReady(TargetError):
    """The other host does not have the set as it must be for a synchronisation."""

    code = "peer_not_ready"
    message = "{host} cannot take part in a synchronisation of {name}: {reason}."
    hint = "`trellis replica show {name} --host {host}` tells how things stand there."


class SizeDiffers(TargetError):
    """A volume has another size than when its set was made."""

    code = "size_differs"
    message = (
        "The volume {volume} has {size_bytes} bytes, but its set {name} was made for"
        " {set_bytes} bytes."
    )
    hint = "Give it its old size back, or delete the set and create it anew."
