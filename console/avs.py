"""The predecessor's commands by their names; each is one line that knows its module.

`snradm` and `sndradm` are two spellings of one command. A module is imported when its command is
typed.
"""

from __future__ import annotations

from collections.abc import Sequence

from console.base import run


def sndradm(arguments: Sequence[str] | None = None) -> int:
    """Replication sets, as `sndradm` is typed."""
    from console.avs_sndr import main

    return run(main, "sndradm", arguments)


def snradm(arguments: Sequence[str] | None = None) -> int:
    """The other spelling of `sndradm`."""
    from console.avs_sndr import main

    return run(main, "snradm", arguments)


def svadm(arguments: Sequence[str] | None = None) -> int:
    """Volumes under control, as `svadm` is typed."""
    from console.avs_sv import main

    return run(main, "svadm", arguments)


def dscfg(arguments: Sequence[str] | None = None) -> int:
    """The configuration, as `dscfg` is typed."""
    from console.avs_cfg import main

    return run(main, "dscfg", arguments)


def dsstat(arguments: Sequence[str] | None = None) -> int:
    """Statistics, as `dsstat` is typed."""
    from console.avs_stat import main

    return run(main, "dsstat", arguments)


def iiadm(arguments: Sequence[str] | None = None) -> int:
    """Point-in-time copies: not in this version, and says so."""
    return run(lambda *_: _not_here("iiadm"), "iiadm", arguments)


def scmadm(arguments: Sequence[str] | None = None) -> int:
    """The cache: not in this version, and says so."""
    return run(lambda *_: _not_here("scmadm"), "scmadm", arguments)


def _not_here(command: str) -> None:
    from console.avs_tables import NOT_HERE
    from console.errors import unsupported

    raise unsupported(
        command, NOT_HERE[command], "Volumes and replication sets work: see `trellis -h`."
    )
