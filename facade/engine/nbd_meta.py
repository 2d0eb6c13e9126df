"""Metadata contexts in the NBD handshake: the queries by which a client lists and selects them."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

# Queries in one option; a client names the few contexts that it wants.
META_QUERIES_MAX = 64
# Longest query, as the protocol has it for every string.
META_QUERY_MAX_BYTES = 4096

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class MetaQuery:
    """What LIST_META_CONTEXT and SET_META_CONTEXT ask: of which export, and for which contexts."""

    export: bytes
    queries: tuple[str, ...]


class MetaQueryRefused(ValueError):
    """The option's data is malformed, or (`is_too_big`) has more queries than are looked at."""

    def __init__(self, reason: str, is_too_big: bool = False) -> None:
        """`reason` is one sentence for the client."""
        super().__init__(reason)
        self.is_too_big = is_too_big


def parse_meta(payload: bytes) -> MetaQuery:
    """Split the option's data. Raises MetaQueryRefused."""
    export, at = _take_string(payload, 0)
    if at + _LENGTH.size > len(payload):
        raise MetaQueryRefused("the number of queries is missing")
    (count,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    if count > META_QUERIES_MAX:
        raise MetaQueryRefused(
            f"{count} queries; at most {META_QUERIES_MAX}, ask for fewer at a time", True
        )
    queries = []
    for _ in range(count):
        encoded, at = _take_string(payload, at)
        queries.append(_decode_query(encoded))
    if at != len(payload):
        raise MetaQueryRefused(f"{len(payload) - at} bytes are left over after the queries")
    return MetaQuery(export, tuple(queries))


def _take_string(payload: bytes, at: int) -> tuple[bytes, int]:
    if at + _LENGTH.size > len(payload):
        raise MetaQueryRefused("the option ends before a string's length")
    (length,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    if length > len(payload) - at:
        raise MetaQueryRefused("a string is longer than the option")
    return payload[at : at + length], at + length


def _decode_query(encoded: bytes) -> str:
    if len(encoded) > META_QUERY_MAX_BYTES:
        raise MetaQueryRefused(f"a query is longer than {META_QUERY_MAX_BYTES} bytes")
    try:
        query = encoded.decode()
    except UnicodeDecodeError:
        raise MetaQueryRefused("a query is not UTF-8") from None
    if query.find(":") < 1:
        raise MetaQueryRefused("a query begins with a namespace and a colon")
    return query


def list_contexts(names: Iterable[str], queries: tuple[str, ...]) -> list[str]:
    """Return the names that match: all of them without queries.

    A query that ends in a colon stands for whatever begins with it.
    """
    return [name for name in names if not queries or any(_matches(name, one) for one in queries)]


def _matches(name: str, query: str) -> bool:
    return name.startswith(query) if query.endswith(":") else name == query


def select_contexts(names: Iterable[str], queries: tuple[str, ...]) -> list[str]:
    """Return the names that the queries spell out."""
    return [name for name in names if name in queries]
