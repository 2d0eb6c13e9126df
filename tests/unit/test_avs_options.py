"""The predecessor's command lines are read by tables; the patent's is read as it is printed."""

import pytest

from console.avs_options import parse, usage
from console.avs_sets import chosen, file_line, from_patent, from_tuple
from console.avs_tables import DSCFG, DSSTAT, SNDRADM, SVADM
from console.errors import NoMeaningHere, WrongUsage
from facade.contract.errors import BadName

PATENT = (
    "-C p s y n MySNDRSet Host_a Volume_a MetaInfoVolume_a Host_b Volume_b MetaInfoVolume_b"
).split()
A = {"host": "host_a", "volume": "Volume_a", "bitmap": "MetaInfoVolume_a"}
B = {"host": "host_b", "volume": "Volume_b", "bitmap": "MetaInfoVolume_b"}


def words(line: str) -> list[str]:
    parsed = parse("snradm", SNDRADM, line.split())
    assert parsed.action == "C"
    return parsed.action_words


def test_patents_first_command() -> None:
    parsed = parse("snradm", SNDRADM, PATENT)
    assert from_patent("snradm", parsed.action_words, lambda: "host_a") == {
        "name": "MySNDRSet", "primary": A, "secondary": B,
        "mode": "sync", "autosync": False, "enable": True,
    }  # fmt: skip


def test_patents_second_command() -> None:
    parsed = parse("sndradm", SNDRADM, ["-c", "s", "MySNDRSet"])
    assert (parsed.action, parsed.action_words, parsed.rest) == ("c", ["s"], ["MySNDRSet"])


@pytest.mark.parametrize(
    ("role", "this_host", "primary"),
    [("p", "host_a", "host_a"), ("s", "host_a", "host_b"),
     ("p", "host_b", "host_b"), ("s", "host_b", "host_a")],
)  # fmt: skip
def test_role_is_this_hosts(role: str, this_host: str, primary: str) -> None:
    order = from_patent("snradm", [role, *PATENT[2:]], lambda: this_host)
    assert order["primary"]["host"] == primary
    assert {order["primary"]["host"], order["secondary"]["host"]} == {"host_a", "host_b"}


def test_role_of_a_host_that_takes_no_part_is_refused() -> None:
    with pytest.raises(WrongUsage, match="role of this host, host_c"):
        from_patent("snradm", PATENT[1:], lambda: "host_c")


@pytest.mark.parametrize("tag", [[], ["group1"], ["p"], ["local"], ["group1", "set1"]])
def test_later_products_tag_is_refused_with_a_sentence(tag: list[str]) -> None:
    with pytest.raises(NoMeaningHere, match="no cluster tags") as caught:
        from_patent("sndradm", tag, lambda: "host_a")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("changed", "problem"),
    [({2: "x"}, "the mode"), ({3: "x"}, "enable"), ({4: "x"}, "autosync"),
     ({11: "extra more"}, "words follow -C")],
)  # fmt: skip
def test_wrong_words_are_named(changed: dict[int, str], problem: str) -> None:
    line = list(PATENT)
    for place, word in changed.items():
        line[place] = word
    with pytest.raises(WrongUsage, match=problem):
        from_patent("snradm", words(" ".join(line)), lambda: "host_a")


def test_odd_names_are_refused() -> None:
    with pytest.raises(BadName):
        from_patent("snradm", [*PATENT[1:5], "../set", *PATENT[6:]], lambda: "host_a")


def test_letters_without_words_may_be_joined() -> None:
    parsed = parse("sndradm", SNDRADM, ["-nu", "set1"])
    assert parsed.action == "u"
    assert parsed.modifier("n") == ""
    assert parsed.rest == ["set1"]


@pytest.mark.parametrize("line", [["-m", "-u"], ["-m", "-m"], ["-n", "-n", "-m"], ["-Z"], ["-c"]])
def test_wrong_lines_are_wrong_usage(line: list[str]) -> None:
    with pytest.raises(WrongUsage):
        parse("sndradm", SNDRADM, line)


@pytest.mark.parametrize("letter", ["a", "A", "W", "F", "D", "q", "I", "R"])
def test_option_without_a_meaning_says_why(letter: str) -> None:
    with pytest.raises(NoMeaningHere) as caught:
        parse("sndradm", SNDRADM, [f"-{letter}", "x"])
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize("table", [SNDRADM, SVADM, DSCFG, DSSTAT])
def test_help_names_every_option(table: tuple[object, ...]) -> None:
    text = usage("x", "what", table)  # type: ignore[arg-type]
    for row in table:
        assert f"  -{row.letter}" in text  # type: ignore[attr-defined]


def test_later_products_tuple_and_its_file_form_agree() -> None:
    line = "host_a Volume_a MetaInfoVolume_a Host_B Volume_b - ip sync g G1 set MySet"
    order = from_tuple("sndradm", line.split())
    assert order["name"] == "MySet"
    assert order["group"] == "G1"
    assert order["secondary"] == {"host": "host_b", "volume": "Volume_b", "bitmap": None}
    assert file_line(order) == line.replace("Host_B", "host_b")


def test_tuple_without_a_name_is_called_after_its_secondary() -> None:
    assert from_tuple("sndradm", "a v b c w - ip sync".split())["name"] == "w@c"


@pytest.mark.parametrize("tail", ["fcal sync", "ip fast", "ip sync g", "ip sync z 1"])
def test_wrong_tuple_is_wrong_usage(tail: str) -> None:
    with pytest.raises(WrongUsage):
        from_tuple("sndradm", f"a v b c w x {tail}".split())


def test_sets_are_found_by_name_and_by_secondary() -> None:
    sets = [{"name": "one", "group": None, "primary": A, "secondary": B},
            {"name": "two", "group": "g", "primary": B, "secondary": A}]  # fmt: skip
    assert chosen(sets, [], None) == sets
    assert chosen(sets, [], "g") == [sets[1]]
    assert chosen(sets, ["Host_B:Volume_b", "two", "three"], None) == [*sets, "three"]
