"""A federation's own CA, and the certificates that its hosts and a client of their exports show.

    D/tls/ca-cert.pem, ca-key.pem          the CA
    D/tls/<host>/server-cert.pem, ...      what a host's engine shows
    D/tls/client/client-cert.pem, ...      what programs show that use the hosts' exports

File names are those that libnbd, nbdkit and qemu look for in such a folder. Keys have mode 0600.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.embedded_plan import LOOPBACK
from console.supervisor_errors import CertificateFailed
from console.supervisor_folders import private_dir
from console.supervisor_plan import CLIENT_FOLDER, CLIENT_NAME

CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
# One that ends sooner is made anew by the next `up`; engines read it at the next connection.
RENEW_BEFORE_S: Final = 30 * 24 * 3600
OPENSSL_TIMEOUT_S: Final = 30
CA_NAME: Final = "Trellis federation"
CURVE: Final = "prime256v1"

CA_CERTIFICATE: Final = "ca-cert.pem"
CA_KEY: Final = "ca-key.pem"


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """Make what is missing or ends soon below `folder`. Raises CertificateFailed.

    A new CA makes all of the others anew.
    """
    private_dir(folder)
    authority = (folder / CA_CERTIFICATE, folder / CA_KEY)
    is_new = not _lasts(*authority)
    if is_new:
        more = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        _make(authority, CA_NAME, CA_DAYS, more, signer=None)
    for host in hosts:
        names = f"subjectAltName=DNS:{host},DNS:localhost,IP:{LOOPBACK},IP:::1"
        _certify(folder / host, "server", host, ["extendedKeyUsage=serverAuth", names], is_new)
    _certify(folder / CLIENT_FOLDER, "client", CLIENT_NAME, ["extendedKeyUsage=clientAuth"], is_new)


def _certify(folder: Path, role: str, name: str, more: list[str], is_ca_new: bool) -> None:
    private_dir(folder)
    authority = folder.parent / CA_CERTIFICATE
    copy = folder / CA_CERTIFICATE
    files = (folder / f"{role}-cert.pem", folder / f"{role}-key.pem")
    if is_ca_new or not _lasts(*files):
        _make(files, name, CERTIFICATE_DAYS, more, signer=(authority, folder.parent / CA_KEY))
    if is_ca_new or not copy.exists():
        _replace(copy, authority.read_bytes())


def _make(
    files: tuple[Path, Path],
    name: str,
    days: int,
    more: list[str],
    signer: tuple[Path, Path] | None,
) -> None:
    certificate, key = files
    with tempfile.TemporaryDirectory(dir=certificate.parent, prefix=".new-") as scratch:
        new = (Path(scratch) / "cert", Path(scratch) / "key")
        command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{CURVE}"]
        command += ["-nodes", "-days", str(days), "-subj", f"/CN={name}"]
        command += ["-out", str(new[0]), "-keyout", str(new[1])]
        if signer is not None:
            command += ["-CA", str(signer[0]), "-CAkey", str(signer[1])]
            more = ["basicConstraints=critical,CA:FALSE", "keyUsage=digitalSignature", *more]
        for extension in more:
            command += ["-addext", extension]
        _openssl(*command)
        # A certificate is there only with its own key, so that one half made is made again.
        certificate.unlink(missing_ok=True)
        _replace(key, new[1].read_bytes())
        _replace(certificate, new[0].read_bytes())


def _lasts(certificate: Path, key: Path) -> bool:
    if not certificate.exists() or not key.exists():
        return False
    check = ["x509", "-noout", "-checkend", str(RENEW_BEFORE_S), "-in", str(certificate)]
    return _run(*check).returncode == 0


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _openssl(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CertificateFailed(reason=said[-1] if said else f"status {done.returncode}")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENSSL_CONF": os.devnull}
    try:
        return subprocess.run(
            ["openssl", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=OPENSSL_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise CertificateFailed(reason="the program openssl is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CertificateFailed(reason=f"no answer in {OPENSSL_TIMEOUT_S} s") from error
