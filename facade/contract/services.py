"""The data services that this build has: the only list of them.

Each tier finds its part of a service by the name: `facade.<service>` (object model),
`beans.<service>` (bean), `console.<service>` (commands). Its noun is the word under which the
command line knows it (`trellis replica show N`), so that a mail can name the exact command.
"""

from collections.abc import Mapping

NOUNS: Mapping[str, str] = {"replication": "replica"}
DATA_SERVICES: tuple[str, ...] = tuple(NOUNS)

# Beans that every host has, whatever data services it runs.
BASE_SERVICES: tuple[str, ...] = ("volume", "config", "station")
