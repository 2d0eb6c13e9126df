"""Imports run down only, for .py, .pyx and .pxd alike, as docs/architecture.md's table says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Package -> what of ours it may import, and the foreign packages that it alone imports.
# The longest name that fits a module is its package.
MAY_IMPORT = {
    "facade.contract": {"facade.contract"},
    "facade.engine": {"facade"},
    "facade": {"facade"},
    "broker": {"broker", "facade.contract"},
    "notifier": {"notifier", "broker", "facade.contract"},
    "beans": {"beans", "facade", "broker"},
    "console": {"console", "beans", "broker", "facade.contract", "notifier"},
}
ALONE = {
    "pika": {"broker"},
    "celery": {"beans"},
    "kombu": {"beans"},
    "click": {"console"},
    "smtplib": {"notifier"},
    "sqlite3": {"facade", "facade.engine", "broker", "notifier"},
}
# Opens volumes: only the facades may reach into it, by its Python modules.
ENGINE_ONLY = "facade.engine"

_CYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:cimport[ \t]+(?P<plain>[\w. ,]+)"
    r"|from[ \t]+(?P<package>[\w.]+)[ \t]+(?:cimport|import)[ \t]+(?P<names>\(?[^#\n]*)"
    r"|import[ \t]+(?P<python>[\w. ,]+))",
    re.MULTILINE,
)


def sources() -> list[Path]:
    found = []
    for package in ("facade", "broker", "notifier", "beans", "console"):
        for pattern in ("*.py", "*.pyx", "*.pxd"):
            found += (ROOT / package).rglob(pattern)
    return sorted(found)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def owner_of(module: str) -> str | None:
    fits = [name for name in MAY_IMPORT if module == name or module.startswith(f"{name}.")]
    return max(fits, key=len, default=None)


def python_imports(text: str, module: str, is_package: bool) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{base_of(node, module, is_package)}.{a.name}" for a in node.names}
    return found


def base_of(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def cython_imports(text: str, module: str) -> set[str]:
    found = set()
    for match in _CYTHON_IMPORT.finditer(text):
        if match["package"]:
            package = match["package"]
            if package.startswith("."):
                dots = len(package) - len(package.lstrip("."))
                head = module.split(".")[:-dots]
                package = ".".join([*head, *filter(None, [package.lstrip(".")])])
            names = re.findall(r"\w+", match["names"].partition(" as ")[0]) or ["*"]
            found |= {f"{package}.{name}" for name in names}
        else:
            listed = match["plain"] or match["python"]
            found |= {item.split(" as ")[0].strip() for item in listed.split(",")}
    return found


def imports_of(path: Path) -> set[str]:
    text, module = path.read_text(encoding="utf-8"), module_of(path)
    if path.suffix == ".py":
        return python_imports(text, module, path.name == "__init__.py")
    return cython_imports(text, module)


def wrong_imports(module: str, imports: set[str]) -> set[str]:
    owner = owner_of(module)
    assert owner is not None, f"{module} belongs to no package of the table"
    wrong = set()
    for name in imports:
        target = owner_of(name)
        if target is not None and not any(
            name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_IMPORT[owner]
        ):
            wrong.add(name)
        elif target == ENGINE_ONLY and owner not in ("facade", ENGINE_ONLY):
            wrong.add(name)
        top = name.partition(".")[0]
        if top in ALONE and owner not in ALONE[top]:
            wrong.add(name)
    return wrong


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_run_down_only(path: Path) -> None:
    wrong = wrong_imports(module_of(path), imports_of(path))
    assert not wrong, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("facade.engine.x", "from beans.app import make", {"beans.app.make"}),
        ("facade.engine.x", "    import broker.events", {"broker.events"}),
        ("facade.engine.x", "cimport broker.connection", {"broker.connection"}),
        (
            "facade.engine.x",
            "from console.base cimport (a, b)",
            {"console.base.a", "console.base.b"},
        ),
        ("facade.engine.x", "from facade.engine.volume cimport Volume", set()),
        ("facade.engine.x", "from .volume cimport Volume\nfrom libc.stdint cimport int64_t", set()),
        ("facade.contract.x", "from facade.errors import VolumeBusy", {"facade.errors.VolumeBusy"}),
    ],
)
def test_an_upward_import_in_cython_is_noticed(module: str, text: str, wrong: set[str]) -> None:
    assert wrong_imports(module, cython_imports(text, module)) == wrong


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("facade.volumes", "def f():\n    import beans.volume", {"beans.volume"}),
        ("broker.events", "from facade import config_store", {"facade.config_store"}),
        ("broker.events", "from facade.contract import events", set()),
        ("console.cli", "from facade.native import Engine", {"facade.native.Engine"}),
        ("beans.volume", "import pika", {"pika"}),
        ("console.cli", "from celery import Celery", {"celery.Celery"}),
        ("beans.volume", "from . import schemas", set()),
        ("beans.volume", "from facade.engine import journal", {"facade.engine.journal"}),
    ],
)
def test_an_upward_import_in_python_is_noticed(module: str, text: str, wrong: set[str]) -> None:
    assert wrong_imports(module, python_imports(text, module, is_package=False)) == wrong


def test_the_table_is_the_one_of_the_architecture_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)` \|([^|]*)\|", page, re.MULTILINE)
    listed = {
        name.replace("/", "."): {
            item.replace("/", ".").removesuffix(".*") for item in re.findall(r"`([\w/.*]+)`", may)
        }
        for name, may in rows
    }
    assert listed.keys() == MAY_IMPORT.keys()
    for name, may in listed.items():
        assert MAY_IMPORT[name] - {name} == may - {name}, name
