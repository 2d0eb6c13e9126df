"""Sizes, tables and progress bars as people read and write them."""

import io

import pytest

from console.output import fields, printable, table
from console.progress import Bar, Progress, render
from console.sizes import human_bytes, human_seconds, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1", 1), ("512", 512), ("64M", 64 << 20), ("1G", 1 << 30), ("1.5g", 3 << 29),
     ("2K", 2048), ("1T", 1 << 40), ("64MiB", 64 << 20), ("64MB", 64 << 20)],
)  # fmt: skip
def test_size_is_binary(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "-1M", "0", "1X", "1.5", "1e9", "1 0M", "9999999T"])
def test_wrong_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (64 << 20, "64 MiB"), (1536 << 20, "1.5 GiB"),
     (5 << 50, "5120 TiB")],
)  # fmt: skip
def test_bytes_are_readable(size_bytes: int, text: str) -> None:
    assert human_bytes(size_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (67, "1:07"), (3725, "1:02:05")])
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_table_has_straight_columns_and_no_trailing_blanks() -> None:
    lines = table(("name", "size"), [("a", 1), ("longer", None)]).splitlines()
    assert lines == ["NAME    SIZE", "a       1", "longer  -"]


def test_what_is_printed_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\nb\x9b") == "a\\x1b[2J\\x0ab\\x9b"
    assert "\x1b" not in table(("name",), [("\x1b[31mred",)])
    assert "\n" not in fields([("name", "a\nerror: b")])


def test_bar_shows_bytes_rate_and_time_left() -> None:
    line = render("set1", Progress(64 << 20, 256 << 20, 64 << 20), 120)
    assert "[#######.......................]" in line
    assert "25%" in line
    assert "64 MiB of 256 MiB" in line
    assert "64 MiB/s" in line
    assert "0:03 left" in line


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_bar_fits_the_terminal(columns: int) -> None:
    assert len(render("a" * 30, Progress(1, 10**12, 12345.6), columns)) <= columns


def test_a_job_with_nothing_to_do_is_done() -> None:
    assert Progress(0, 0, 0.0).fraction == 1.0


def test_no_bar_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    bar = Bar("set1", stream)
    bar.show(Progress(1, 2, 3.0))
    bar.close()
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_is_redrawn_in_place_and_leaves_a_line() -> None:
    stream = Terminal()
    bar = Bar("set1", stream)
    bar.show(Progress(1, 2, 3.0))
    bar.show(Progress(2, 2, 3.0), "nobody answers")
    bar.close()
    drawn = stream.getvalue()
    assert drawn.count("\r") == 2
    assert drawn.endswith("\n")
    assert "nobody answers" in drawn
