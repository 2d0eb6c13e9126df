"""Pages made from code say what the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pages():
    spec = importlib.util.spec_from_file_location(
        "make_reference", ROOT / "scripts/make_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", ["settings.md", "errors.md", "events.md", "states.md"])
def test_page_is_what_the_code_says(name):
    written = (ROOT / "docs" / name).read_text()
    assert written == pages()[name](), "run `python scripts/make_reference.py`"
