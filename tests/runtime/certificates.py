"""Certificates of a deployment, and of others."""

from pathlib import Path

import trustme

from dynamo.runtime.credentials import Credentials
from dynamo.runtime.mutual_tls import mutual_tls


class Authority:
    """Signs certificates for processes, which are files in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self._directory = directory
        directory.mkdir()
        self.ca = str(directory / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str) -> tuple[str, str]:
        """The paths of a certificate and its key."""
        cert, key = str(self._directory / f"{name}.pem"), str(self._directory / f"{name}-key.pem")
        issued = self._authority.issue_cert(f"{name}.example")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def credentials(self, secret: bytes | None = None, *, trusts: "Authority | None" = None) -> Credentials:
        """Of a process whose certificate this authority has signed, and that trusts it, or another."""
        cert, key = self.issue("process")
        return Credentials(secret=secret, tls=mutual_tls(cert, key, (trusts or self).ca))
