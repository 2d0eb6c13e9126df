"""`make demo`: the patent's example on two hosts of this machine, each command printed first.

Every tool that touches a volume is somebody else's: mkfs.ext4, debugfs, nbdcopy, qemu-io and
sha256sum. Everything lives in `.trellis-demo`, removed at the start and, if all went well, at the
end.
"""

from __future__ import annotations

import re
import shutil
import sys
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from console.place import record_of
from demo.link_proxy import LinkProxy
from demo.stage import Stage, StepFailed, copy_project, processes_naming
from facade.contract.settings import split_address

ROOT: Final = Path(__file__).resolve().parents[1]
DIRECTORY: Final = ROOT / ".trellis-demo"
SET: Final = "MySNDRSet"
VOLUME_SIZE: Final = "256M"
BITMAP_SIZE: Final = "1M"
BLOCK_BYTES: Final = 32 * 1024
BITMAP_HEADER_BYTES: Final = 8192
CUT_OFF_WRITES: Final = (("0x5a", 200, 3), ("0x17", 250, 1))
"""Written while the link is cut: pattern, place and length in MiB."""
CHANGED_BYTES: Final = sum(length for _, _, length in CUT_OFF_WRITES) << 20
HTTP_TIMEOUT_S: Final = 10.0
TO_MAIL: Final = ("set created", ": syncing", ": replicating", ": link lost")


def main() -> int:
    """Run the demo; 0 when everything was as it should be."""
    stage = Stage(ROOT, DIRECTORY)
    proxy = LinkProxy(("127.0.0.1", 0)).start()
    try:
        stage.need_programs()
        clean_up(stage)
        play(stage, proxy)
    except StepFailed as error:
        stage.say(f"\nThe demo stopped: {error}.\nThe folder {DIRECTORY} is kept; see log/ in it.")
        stage.try_to("trellis", "down")
        return 1
    except KeyboardInterrupt:
        stage.say("\nThe demo was interrupted.")
        stage.try_to("trellis", "down")
        return 130
    finally:
        proxy.close()
    shutil.rmtree(DIRECTORY)
    stage.step("The demo has ended well: everything is down, nothing is left behind")
    return 0


def play(stage: Stage, proxy: LinkProxy) -> None:
    """The whole piece."""
    bring_up(stage, proxy)
    primary, secondary = make_volumes(stage)
    create_set(stage)
    synchronise(stage, primary, secondary)
    uri = write_while_replicating(stage, primary, secondary)
    write_while_cut(stage, proxy, uri, primary, secondary)
    update(stage, proxy, primary, secondary)
    show_mails(stage)
    show_flower(stage)
    take_down(stage)


def clean_up(stage: Stage) -> None:
    """Take down and remove what an interrupted demo has left."""
    if DIRECTORY.exists():
        stage.try_to("trellis", "down")
        shutil.rmtree(DIRECTORY)


def bring_up(stage: Stage, proxy: LinkProxy) -> None:
    """A federation of two hosts; the link to host_b goes through the proxy."""
    stage.step("A federation of two hosts: private RabbitMQ and Redis, beans, notifier, Flower")
    host, port = proxy.address
    stage.run("trellis", "up", "--detach", "--advertise", f"host_b={host}:{port}")
    record = record_of(DIRECTORY)
    if record is None:
        raise StepFailed("`trellis up` left no record of the federation")
    proxy.set_target(split_address(record.links["host_b"]))
    hosts = stage.ask("host", "list")
    stage.check(
        [(one["host"], one["state"]) for one in hosts] == [("host_a", "up"), ("host_b", "up")],
        "every bean of both hosts answers",
        f"not every bean answers: {hosts}",
    )


def make_volumes(stage: Stage) -> tuple[Path, Path]:
    """Volume_a with a file system in it, an empty Volume_b, and a bitmap volume for each."""
    stage.step("Volumes: a file system image with this repository's files, and room for its copy")
    for letter in "ab":
        for kind, size in (("Volume", VOLUME_SIZE), ("MetaInfoVolume", BITMAP_SIZE)):
            name = f"{kind}_{letter}"
            stage.run("trellis", "volume", "create", name, "--size", size,
                      "--host", f"host_{letter}", show=False)  # fmt: skip
    files = DIRECTORY / "files"
    count = copy_project(ROOT, files)
    path_a = stage.ask("volume", "show", "Volume_a")["path"]
    path_b = stage.ask("volume", "show", "Volume_b", "--host", "host_b")["path"]
    stage.run("mkfs.ext4", "-q", "-F", "-d", files, path_a)
    stage.check(count > 0, f"{count} files are in the file system on Volume_a", "it is empty")
    return Path(path_a), Path(path_b)


def create_set(stage: Stage) -> None:
    """The patent's first command, typed on host_a."""
    stage.step("The patent's first command: a set on both hosts, by one command on one")
    stage.run("snradm", "-C", "p", "s", "y", "n", SET, "Host_a", "Volume_a", "MetaInfoVolume_a",
              "Host_b", "Volume_b", "MetaInfoVolume_b")  # fmt: skip
    for host in ("host_a", "host_b"):
        state = show_set(stage, host)["state"]
        stage.check(state == "logging", f"{host} says that {SET} is logging",
                    f"{host} says that {SET} is {state}")  # fmt: skip


def synchronise(stage: Stage, primary: Path, secondary: Path) -> None:
    """The patent's second command."""
    stage.step("The patent's second command: full synchronisation, then replicating")
    stage.run_on_terminal("sndradm", "-c", "s", SET)
    check_state(stage, "replicating")
    check_equal(stage, primary, secondary)


def write_while_replicating(stage: Stage, primary: Path, secondary: Path) -> str:
    """Writes through the export of the primary go to both hosts; gives the export's address."""
    stage.step("Writes through the primary's NBD export while it replicates")
    uri = stage.run("trellis", "volume", "uri", "Volume_a").strip()
    image = DIRECTORY / "second.img"
    (DIRECTORY / "files" / "WRITTEN-WHILE-REPLICATING").write_text("This went to both hosts.\n")
    shutil.copyfile(primary, image)
    stage.run("debugfs", "-w", "-R", f"write {DIRECTORY}/files/WRITTEN-WHILE-REPLICATING new.txt",
              image, show=False)  # fmt: skip
    stage.run("nbdcopy", image, uri)
    check_state(stage, "replicating")
    check_equal(stage, primary, secondary)
    said = stage.run("debugfs", "-R", "cat new.txt", secondary)
    stage.check("This went to both hosts." in said, "the file can be read out of the secondary",
                "the secondary does not hold the file that was written")  # fmt: skip
    return uri


def write_while_cut(
    stage: Stage, proxy: LinkProxy, uri: str, primary: Path, secondary: Path
) -> None:
    """Without the link the application goes on; what it changes is recorded."""
    stage.step("The link is cut; the application goes on writing")
    bitmap = Path(stage.ask("volume", "show", "MetaInfoVolume_a")["path"])
    # Bits are cleared a moment after both sides have flushed; what is set then is from the cut on.
    stage.wait_for("bitmap whose bits are cleared", lambda: bits_are_clear(bitmap))
    proxy.cut()
    stage.say("(the proxy between the engines resets every connection and takes no new one)")
    writes = [
        word
        for pattern, place, length in CUT_OFF_WRITES
        for word in ("-c", f"write -P {pattern} {place}M {length}M")
    ]
    stage.run("qemu-io", "-f", "raw", *writes, "-c", "flush", uri, show=False)
    stage.wait_for(f"{SET} that is logging", lambda: show_set(stage)["state"] == "logging")
    stage.run("trellis", "replica", "show", SET)
    dirty = show_set(stage)["dirty_blocks"]
    changed = CHANGED_BYTES // BLOCK_BYTES
    stage.check(dirty == changed, f"logging, with {dirty} changed blocks: just what was written",
                f"{changed} blocks were written, and {dirty} count as changed")  # fmt: skip
    digests = sums(stage, primary, secondary)
    stage.check(digests[0] != digests[1], "the volumes differ now", "the volumes are still equal")


def update(stage: Stage, proxy: LinkProxy, primary: Path, secondary: Path) -> None:
    """With the link back, an update sends what has changed, and no more."""
    stage.step("The link is back; an update synchronisation sends only what has changed")
    proxy.restore()
    before = proxy.forwarded_bytes
    said = stage.run_on_terminal("sndradm", "-c", "u", SET)
    match = re.search(r"\((\d+) bytes\) on the link", said)
    if match is None:
        raise StepFailed("the update does not say how many bytes it sent")
    sent_bytes, passed_bytes = int(match[1]), proxy.forwarded_bytes - before
    limit = CHANGED_BYTES * 5 // 4
    stage.check(
        0 < sent_bytes <= limit and passed_bytes <= limit,
        f"{sent_bytes} bytes for {CHANGED_BYTES} changed ones, of a volume of {VOLUME_SIZE}; "
        f"the proxy has seen {passed_bytes} pass",
        f"{sent_bytes} bytes were sent ({passed_bytes} passed the proxy) "
        f"for {CHANGED_BYTES} changed ones",
    )
    check_state(stage, "replicating")
    check_equal(stage, primary, secondary)


def show_mails(stage: Stage) -> None:
    """A mail for each change of state."""
    stage.step("The mails that the notifier has sent about it")

    def told() -> list[Any] | None:
        mails = stage.ask("event", "mail")
        subjects = " ".join(str(one["subject"]) for one in mails)
        # Replicating was reached twice: the last mail is about the end of the update.
        each = all(what in subjects for what in TO_MAIL) and subjects.count(TO_MAIL[2]) == 2
        return mails if each else None

    mails = stage.wait_for("mail about every change of state", told)
    stage.run("trellis", "event", "mail")
    lost = next(one["number"] for one in mails if TO_MAIL[3] in one["subject"])
    stage.say(f"\nMail {lost} in full:\n")
    full = stage.ask("event", "mail", "--full")
    stage.say(next(one["body"] for one in full if one["number"] == lost))
    ids = [one["message_id"] for one in full]
    stage.check(len(set(ids)) == len(ids), f"{len(ids)} mails, each event told once",
                "an event was told twice")  # fmt: skip


def show_flower(stage: Stage) -> None:
    """Every bean is a worker in Flower."""
    stage.step("Flower shows every bean as a worker")
    record = record_of(DIRECTORY)
    if record is None:
        raise StepFailed("the record of the federation is gone")
    stage.say(f"Flower: {record.flower_login_url}")
    parts = urlsplit(record.flower_login_url)
    login = b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    request = urllib.request.Request(
        f"{record.flower_url}workers", headers={"Authorization": f"Basic {login}"}
    )

    def shown() -> str | None:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:
            page = answer.read().decode("utf-8", "replace")
        return page if all(f"replication@{host}" in page for host in record.hosts) else None

    page = stage.wait_for("page of Flower that shows the beans", shown)
    beans = sorted(set(re.findall(r"[a-z.]+@host_[ab]\b", page)))
    stage.say("workers: " + ", ".join(beans))


def take_down(stage: Stage) -> None:
    """No process is left."""
    stage.step("Everything is taken down")
    stage.run("trellis", "down")
    left = processes_naming(str(DIRECTORY))
    stage.check(not left, "no process is left", f"processes are left: {'; '.join(left)}")


def show_set(stage: Stage, host: str = "host_a") -> Any:
    """The set as a host's bean tells it."""
    return stage.ask("replica", "show", SET, "--host", host)


def check_state(stage: Stage, wanted: str) -> None:
    state = show_set(stage)["state"]
    stage.check(state == wanted, f"{SET} is {state}", f"{SET} is {state}, not {wanted}")


def check_equal(stage: Stage, primary: Path, secondary: Path) -> None:
    digests = sums(stage, primary, secondary)
    stage.check(digests[0] == digests[1], "both volumes have the same SHA-256",
                f"the volumes differ: {digests[0]} and {digests[1]}")  # fmt: skip


def bits_are_clear(bitmap: Path) -> bool:
    """No bit is set behind the header of a bitmap volume."""
    return not any(bitmap.read_bytes()[BITMAP_HEADER_BYTES:])


def sums(stage: Stage, primary: Path, secondary: Path) -> tuple[str, str]:
    """SHA-256 of both volumes, by sha256sum."""
    lines = stage.run("sha256sum", primary, secondary).splitlines()
    return lines[0].split()[0], lines[1].split()[0]


if __name__ == "__main__":
    sys.exit(main())
