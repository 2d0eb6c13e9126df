"""The data services that this build has: the only list of them.

Each tier finds its part of a service by the name: `facade.<service>` (object model),
`beans.<service>` (bean), `console.<service>` (commands).
"""

DATA_SERVICES: tuple[str, ...] = ("replication",)

# Beans that every host has, whatever data services it runs.
BASE_SERVICES: tuple[str, ...] = ("volume", "config", "station")
