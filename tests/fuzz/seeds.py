"""The inputs that fuzzing begins with, and those that once found a fault: one a line, in hex.

python -m tests.fuzz.seeds FOLDER                    write them as files, a folder a target
python -m tests.fuzz.seeds --take TARGET FOLDER      add the files of a folder as lines
"""

import sys
from pathlib import Path

TARGETS = ("handshake", "request_stream", "link", "control")
SEEDS = Path(__file__).with_name("seeds")


def read(target: str) -> list[bytes]:
    """Return a target's inputs; what follows a `#` says where one comes from."""
    lines = (SEEDS / f"{target}.txt").read_text(encoding="utf-8").splitlines()
    return [bytes.fromhex(line.partition("#")[0]) for line in lines if line.partition("#")[0]]


def unpack(folder: Path) -> None:
    """Write each target's inputs as files, which is how libFuzzer wants them."""
    for target in TARGETS:
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(read(target)):
            (folder / target / f"{number:04}").write_bytes(data)


def take(target: str, folder: Path) -> None:
    """Add inputs that are not there yet, the shortest first."""
    known = set(read(target))
    found = {path.read_bytes() for path in folder.iterdir()} - known
    with (SEEDS / f"{target}.txt").open("a", encoding="utf-8") as lines:
        lines.writelines(
            f"{data.hex()}\n" for data in sorted(found, key=lambda one: (len(one), one))
        )


if __name__ == "__main__":
    if sys.argv[1] == "--take":
        take(sys.argv[2], Path(sys.argv[3]))
    else:
        unpack(Path(sys.argv[1]))
