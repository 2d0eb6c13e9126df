"""The options of the predecessor's commands, one row each: what works, and why the rest does not.

`docs/commands.md` and `-h` are made of these tables.
"""

from __future__ import annotations

from typing import Final

from console.avs_options import ACTION, MANY, MODIFIER, NONE, Option

NO_CLUSTER: Final = "there are no cluster tags here; each host is named in the set"
ONLY_ASYNC: Final = "it belongs to asynchronous replication, which this version does not have"
NO_QUEUE: Final = "disk queues belong to asynchronous replication, which this version does not have"
NO_IMAGING: Final = "point-in-time copies are not in this version"

HELP: Final = Option("h", ACTION, 0, "-h", "show this help")
VERSION: Final = Option("v", ACTION, 0, "-v", "show the version")

SNDRADM: Final = (
    Option(
        "C",
        ACTION,
        MANY,
        "-C p|s s|a y|n y|n SET PHOST PVOL PBITMAP SHOST SVOL SBITMAP",
        "create SET on both hosts: role of this host, mode, enable, autosync",
    ),
    Option(
        "c",
        ACTION,
        1,
        "-c s|u|l SET",
        "synchronise in full, synchronise by update, or go to logging",
    ),
    Option(
        "e",
        ACTION,
        0,
        "-e SET | -e PHOST PVOL PBITMAP SHOST SVOL SBITMAP ip sync",
        "enable a set, all of it to be copied",
    ),
    Option(
        "E",
        ACTION,
        0,
        "-E PHOST PVOL PBITMAP SHOST SVOL SBITMAP ip sync",
        "enable a set whose volumes are identical already",
    ),
    Option("d", ACTION, 0, "-d [SET...]", "disable on both hosts; the sets stay configured"),
    Option("l", ACTION, 0, "-l [SET...]", "stop copying and record changes (logging)"),
    Option("m", ACTION, 0, "-m [SET...]", "copy everything from primary to secondary"),
    Option("u", ACTION, 0, "-u [SET...]", "copy what has changed from primary to secondary"),
    Option("w", ACTION, 0, "-w [SET...]", "wait for the end of a synchronisation"),
    Option("H", ACTION, 0, "-H [SET...]", "tell whether the link is active"),
    Option("p", ACTION, 0, "-p [SET...]", "list sets"),
    Option("P", ACTION, 0, "-P [SET...]", "list sets with state, autosync and changed blocks"),
    Option("i", ACTION, 0, "-i [SET...]", "list sets in the form that -f reads"),
    HELP,
    VERSION,
    Option("r", MODIFIER, 0, "-r", "with -m or -u: from secondary to primary"),
    Option("n", MODIFIER, 0, "-n", "ask nothing"),
    Option("g", MODIFIER, 1, "-g GROUP", "only sets of this consistency group"),
    Option("f", MODIFIER, 1, "-f FILE", "with -e or -E: sets from a file, one a line"),
    Option(
        "a",
        NONE,
        0,
        "-a",
        "a set keeps the autosync that it was created with (the fourth letter behind -C)",
    ),
    Option("A", NONE, 0, "-A", ONLY_ASYNC),
    Option("W", NONE, 0, "-W", ONLY_ASYNC),
    Option("F", NONE, 0, "-F", ONLY_ASYNC),
    Option("D", NONE, 0, "-D", NO_QUEUE),
    Option("q", NONE, 0, "-q", NO_QUEUE),
    Option("I", NONE, 0, "-I", NO_IMAGING),
    Option(
        "R", NONE, 0, "-R", "a set cannot be changed in this version; delete it and create it anew"
    ),
)

SVADM: Final = (
    Option("e", ACTION, 0, "-e VOLUME...", "put volumes under SVI control"),
    Option("d", ACTION, 0, "-d VOLUME...", "take volumes out of control"),
    Option("i", ACTION, 0, "-i", "list with size, users and address"),
    HELP,
    VERSION,
    Option("f", MODIFIER, 1, "-f FILE", "with -e or -d: volumes from a file, one a line"),
    Option("r", NONE, 0, "-r", "name what is to change with -e and -d"),
    Option("C", NONE, 0, "-C", NO_CLUSTER),
)

DSCFG: Final = (
    Option("l", ACTION, 0, "-l", "print the host's configuration"),
    Option("L", ACTION, 0, "-L", "tell who holds the configuration"),
    HELP,
    VERSION,
    Option("i", NONE, 0, "-i", "`trellis up` and the first start of a host make its configuration"),
    Option("a", NONE, 0, "-a", "importing a configuration is not in this version"),
    Option("p", NONE, 0, "-p", "the configuration store needs no parser file"),
    Option("s", NONE, 0, "-s", NO_CLUSTER),
    Option("C", NONE, 0, "-C", NO_CLUSTER),
    Option("D", NONE, 0, "-D", NO_CLUSTER),
)

DSSTAT: Final = (
    Option("m", MODIFIER, 1, "-m sndr", "which service (only sndr in this version)"),
    Option("s", MODIFIER, 1, "-s SET[,SET...]", "only these sets"),
    Option("F", MODIFIER, 0, "-F", "headings once"),
    Option("f", MODIFIER, 0, "-f", "headings in every cycle"),
    Option("z", MODIFIER, 0, "-z", "leave out sets with nothing to copy"),
    HELP,
    VERSION,
    Option("r", NONE, 0, "-r", "bitmap and network are not counted apart"),
    Option("d", NONE, 0, "-d", "there is one form of the table"),
)

NOT_HERE: Final = {
    "iiadm": NO_IMAGING,
    "scmadm": "the cache service is not in this version",
}
