"""The compiled half of the build: every `facade/engine/*.pyx` is an extension module.

Metadata and dependencies are in pyproject.toml. Variables of the build:

    BUILD_SKIP_EXTENSIONS=1   install the Python part only (`make build` compiles afterwards)
    BUILD_KEEP_GOING=1        leave out modules that do not translate, instead of stopping
    BUILD_TRACE=1             line tracing, so that coverage sees .pyx lines
    CFLAGS, LDFLAGS           as usual, added last (sanitizers use them)
"""

import os
from pathlib import Path

from setuptools import Extension, setup

ENGINE = Path("facade/engine")
SHARED_UTILITY = "facade.engine._cyutility"

# Libraries that a module links against, by module name.
LIBRARIES: dict[str, list[str]] = {
    "keyed_digest": ["crypto"],
    "nbd_tls": ["ssl", "crypto"],
    "nbd_transport": ["ssl", "crypto"],
}

# A header's helpers are compiled into every module that includes it, used there or not.
C_FLAGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-function"]

# `warn.undeclared` and `warn.unused_result` stay off: they count every import and every call of a
# Python method, and a real warning drowns among them.
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "warn.unused": True,
    "warn.maybe_uninitialized": True,
}


def switched_on(name: str) -> bool:
    """Tell whether a variable of the build is set to 1."""
    return os.environ.get(name) == "1"


def extensions() -> list[Extension]:
    """Return the translated modules and, with them, the utility code that they share."""
    from Cython.Build import cythonize

    sources = sorted(ENGINE.glob("*.pyx"))
    if not sources:
        return []
    trace = switched_on("BUILD_TRACE")
    macros: list[tuple[str, str | None]] = []
    if trace:
        macros = [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    modules = [
        Extension(
            f"facade.engine.{source.stem}",
            [str(source)],
            include_dirs=[str(ENGINE)],
            libraries=LIBRARIES.get(source.stem, []),
            extra_compile_args=C_FLAGS,
            define_macros=macros,
            # A changed C header of ours rebuilds whoever may include it.
            depends=[str(header) for header in sorted(ENGINE.glob("*.h"))],
        )
        for source in sources
    ]
    utility = Extension(
        SHARED_UTILITY,
        [f"{SHARED_UTILITY.replace('.', '/')}.c"],
        extra_compile_args=C_FLAGS,
    )
    translated: list[Extension] = cythonize(
        [*modules, utility],
        compiler_directives={**DIRECTIVES, "linetrace": trace},
        shared_utility_qualified_name=SHARED_UTILITY,
        exclude_failures=switched_on("BUILD_KEEP_GOING"),
    )
    return translated


setup(ext_modules=[] if switched_on("BUILD_SKIP_EXTENSIONS") else extensions())
