"""What can happen to volumes, and to the engine that serves them."""

from typing import Final

from facade.contract.events import EventKind, register

VOLUME_SERVICE: Final = "volume"
ENGINE_SERVICE: Final = "engine"

_WATCH = "Nothing has to be done."

VOLUME_KINDS: Final = (
    EventKind(
        VOLUME_SERVICE,
        "volume_created",
        "info",
        "The volume {subject} of {size_bytes} bytes was created on {host}.",
        _WATCH,
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_enabled",
        "info",
        "The volume {subject} on {host} is under control of Trellis; applications use it"
        " through its address.",
        "`trellis volume uri {subject}` shows the address.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_disabled",
        "info",
        "The volume {subject} on {host} is no longer under control of Trellis.",
        _WATCH,
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_attached",
        "info",
        "The volume {subject} on {host} is attached to {path} by {helper}.",
        "`trellis volume detach {subject}` ends that.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_detached",
        "info",
        "The volume {subject} on {host} is no longer attached to {path}.",
        _WATCH,
    ),
    EventKind(
        VOLUME_SERVICE,
        "attachment_restored",
        "warning",
        "The volume {subject} on {host} is attached to {path} again: {reason}.",
        "What had {path} open has lost it: unmount it, release its loop device, and open it again.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "attachment_broken",
        "error",
        "The volume {subject} on {host} is attached to {path}, but that does not work ({reason})"
        " and cannot be made anew: {error}",
        "It is tried again twice a minute; `trellis volume detach {subject}` gives it up.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_resized",
        "info",
        "The volume {subject} on {host} has {size_bytes} bytes now.",
        "Clients that are connected may have to connect again to see the new size.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_missing",
        "error",
        "The volume {subject} on {host} is under control of Trellis, but the engine cannot"
        " open it: {reason}",
        "Look at {path} on {host}; once it is back, `trellis volume enable {subject}`.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_exported",
        "info",
        "The volume {subject} on {host} is exported to other hosts as {uri}.",
        "`trellis volume show {subject}` tells which clients may use it.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_unexported",
        "info",
        "The volume {subject} on {host} is no longer exported to other hosts.",
        _WATCH,
    ),
    EventKind(
        VOLUME_SERVICE,
        "export_failed",
        "error",
        "The volume {subject} on {host} cannot be exported to other hosts: {reason}",
        "Put `[export]` of the host's settings right (docs/exports.md); it is tried again.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "export_refused",
        "warning",
        "The export {subject} on {host} was refused to the client {client}: {reason}.",
        "If it should use it, add its name: `trellis volume enable {subject} --export --client"
        " NAME`. Told once in ten minutes for each client.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "tls_refused",
        "warning",
        "A client at {client} was refused by the exports of {host}: {reason}.",
        "It needs a certificate of the CA in `[export] ca` (docs/exports.md). Told once in ten"
        " minutes for each address.",
    ),
    EventKind(
        VOLUME_SERVICE,
        "volume_failed",
        "critical",
        "The volume {subject} on {host} fails ({reason}).",
        "Look at the disk of {host} now; `trellis volume uses {subject}` shows the sets.",
    ),
)

ENGINE_KINDS: Final = (
    EventKind(
        ENGINE_SERVICE, "engine_started", "info", "The engine of {host} has started.", _WATCH
    ),
    EventKind(
        ENGINE_SERVICE,
        "engine_recovered",
        "warning",
        "The engine of {host} has started after it did not end properly; nothing that was"
        " acknowledged is lost, and what was on its way counts as changed.",
        "`trellis status` shows which sets need a synchronisation.",
    ),
    EventKind(
        ENGINE_SERVICE,
        "engine_stopped",
        "warning",
        "The engine of {host} has ended; its volumes cannot be used until it runs again.",
        "If nobody ended it, start `trellis-engine` and look at its log.",
    ),
)

register(*VOLUME_KINDS, *ENGINE_KINDS)
