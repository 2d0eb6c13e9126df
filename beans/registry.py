"""Which beans this build has: the base services and the registered data services."""

import importlib
from typing import cast

from beans.base import Bean
from beans.errors import UnknownBean
from facade.contract import services


def bean_names() -> tuple[str, ...]:
    """Give the names of all beans, the station last: it looks at the others."""
    base = [name for name in services.BASE_SERVICES if name != "station"]
    return (*base, *services.DATA_SERVICES, "station")


def bean_class(name: str) -> type[Bean]:
    """Import the module `beans.<name>` and give its `BEAN`.

    Raises:
        UnknownBean: the name is not registered.
    """
    if name not in bean_names():
        raise UnknownBean(bean=name, known=", ".join(bean_names()))
    return cast(type[Bean], importlib.import_module(f"beans.{name}").BEAN)
