"""The predecessor's options as tables, and a parser that reads any command by its table. Pure.

The predecessor's syntax is its own: single letters, some of them followed by a fixed number of
words (`-C p s y n SET HOST VOLUME BITMAP HOST VOLUME BITMAP`), letters without words joined
(`-nu`), and sets named behind everything. Each command is one tuple of `Option` rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from console.errors import NoMeaningHere, WrongUsage

ACTION: Final = "action"
"""An option that says what to do; a command line has one of them."""
MODIFIER: Final = "modifier"
NONE: Final = "none"
"""An option without a meaning here; its row says why."""

MANY: Final = -1
"""As `words`: everything that follows."""


@dataclass(frozen=True, slots=True)
class Option:
    """One letter: how many words belong to it, what it is, and a line of help (or of regret)."""

    letter: str
    kind: str
    words: int
    usage: str
    meaning: str


@dataclass
class Parsed:
    """What a command line says."""

    action: str | None = None
    action_words: list[str] = field(default_factory=list)
    modifiers: dict[str, list[str]] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    def modifier(self, letter: str) -> str | None:
        """The first word of a modifier, "" for one without words, None when it was not given."""
        words = self.modifiers.get(letter)
        return None if words is None else (words[0] if words else "")


def parse(command: str, table: Iterable[Option], arguments: Sequence[str]) -> Parsed:
    """Read a command line by its table. Raises WrongUsage, NoMeaningHere."""
    options = {row.letter: row for row in table}
    parsed = Parsed()
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            parsed.rest += words
            break
        if word == "--json":  # known to every command of the upper tier, read before this
            continue
        if word == "--help":
            word = "-h"
        if not word.startswith("-") or word == "-":
            parsed.rest.append(word)
            continue
        for letter in word[1:]:
            row = options.get(letter)
            if row is None:
                raise wrong(command, f"There is no option -{letter}.")
            _take(command, row, words, parsed)
    return parsed


def wrong(command: str, problem: str) -> WrongUsage:
    """A command line that cannot be understood."""
    return WrongUsage(problem=problem, help=f"`{command} -h` shows the options.")


def usage(command: str, what: str, table: Iterable[Option]) -> str:
    """The text of `-h`, made of the table: what works, then what has no meaning here."""
    rows = list(table)
    width = max(len(row.usage) for row in rows if row.kind != NONE)
    lines = [f"{command}: {what}", ""]
    lines += [f"  {row.usage:<{width}}  {row.meaning}" for row in rows if row.kind != NONE]
    dead = [row for row in rows if row.kind == NONE]
    if dead:
        lines += ["", "Without a meaning here:"]
        lines += [f"  -{row.letter}  {row.meaning}" for row in dead]
    return "\n".join(lines)


def _take(command: str, row: Option, words: list[str], parsed: Parsed) -> None:
    if row.kind == NONE:
        raise NoMeaningHere(command=command, option=f"-{row.letter}", reason=row.meaning)
    count = len(words) if row.words == MANY else row.words
    if len(words) < count:
        raise wrong(command, f"-{row.letter} is followed by {count} words: {row.usage}.")
    taken = [words.pop(0) for _ in range(count)]
    if row.kind == MODIFIER:
        if row.letter in parsed.modifiers:
            raise wrong(command, f"-{row.letter} is given twice.")
        parsed.modifiers[row.letter] = taken
        return
    if parsed.action is not None:
        raise wrong(command, f"-{parsed.action} and -{row.letter} cannot be given together.")
    parsed.action, parsed.action_words = row.letter, taken
