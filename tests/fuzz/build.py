"""Build the NBD modules and the request fuzzer for libFuzzer, in a copy of the sources.

    python tests/fuzz/build.py FOLDER       compiler: $CC, else clang

What parses a client's bytes is built with coverage and the address sanitizer; the engine's other
modules are taken as `make build` left them. Only what changed is built again.
"""

import ast
import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path("facade/engine")
FUZZER = Path("tests/fuzz/request_stream.pyx")
INSTRUMENTED = ("nbd_*.pyx",)
FLAGS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,fuzzer-no-link"]
QUIET = ["-Wno-unused-function", "-Wno-unreachable-code-fallthrough"]


def refresh(source: Path, target: Path) -> None:
    """Copy a file unless the copy has its time already."""
    if target.exists() and target.stat().st_mtime_ns == source.stat().st_mtime_ns:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def copy_sources(folder: Path) -> list[Path]:
    """Bring the copy up to date; return the sources to be built, relative to it."""
    built = [
        *(one.relative_to(ROOT) for glob in INSTRUMENTED for one in (ROOT / ENGINE).glob(glob)),
        FUZZER,
    ]
    stems = {one.stem for one in built}
    for source in (ROOT / "facade").rglob("*"):
        is_ours = source.suffix in (".py", ".pyx", ".pxd", ".h", ".so")
        if (
            source.is_file()
            and is_ours
            and not (source.suffix == ".so" and source.name.partition(".")[0] in stems)
        ):
            refresh(source, folder / source.relative_to(ROOT))
    for source in (ROOT / "tests/fuzz").glob("*.py*"):
        refresh(source, folder / source.relative_to(ROOT))
    return sorted(built)


def linked_libraries() -> dict[str, list[str]]:
    """Return setup.py's LIBRARIES: what a module links against, by name."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LIBRARIES":
            return ast.literal_eval(node.value)
    raise LookupError("setup.py has no LIBRARIES")


def build(folder: Path) -> None:
    """Translate and compile in `folder`."""
    sources = copy_sources(folder)
    os.chdir(folder)
    os.environ.setdefault("CC", "clang")
    libraries = linked_libraries()
    os.environ["LDSHARED"] = f"{os.environ['CC']} -shared"
    extensions = [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            include_dirs=[str(ENGINE)],
            libraries=libraries.get(source.stem, []),
            extra_compile_args=[*FLAGS, *QUIET],
            extra_link_args=FLAGS,
            depends=[str(one) for one in ENGINE.glob("*.h")],
        )
        for source in sources
    ]
    command = build_ext(
        Distribution({
            "ext_modules": cythonize(
                extensions,
                compiler_directives={"language_level": 3},
                shared_utility_qualified_name="facade.engine._cyutility",
            )
        })
    )  # fmt: skip
    command.inplace = True
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
