"""Address of a DICOMweb server: what names it, what is a secret, and where the state that belongs to it is kept."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from svgd_label.errors import UserError

_PORTS = {"http": 80, "https": 443}


class AddressError(UserError):
    """An address that cannot be a DICOMweb server's."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        url: without user, password, query and trailing slash; it may stand in logs.
        username: as written into the address; empty where it names nobody.
        password: likewise.
    """

    url: str
    username: str = ""
    password: str = field(default="", repr=False)

    @property
    def state(self) -> Path:
        """Where its state is kept unless said otherwise; the same for all ways to write the address."""
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return Path.home() / ".local" / "share" / "svgd-label" / digest


def is_web(studies: str) -> bool:
    """Whether studies stand for a DICOMweb server rather than a folder."""
    return studies.startswith(("http://", "https://"))


def read_address(studies: str) -> Address:
    """The server that an address such as ``http://127.0.0.1:8042/dicom-web/`` names.

    Raises:
        AddressError: it names no host, or a port that is none. The sentence does not repeat it: it may hold a password.
    """
    try:
        parts = urlsplit(studies.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"the address of the DICOM server cannot be read ({error}); {_EXAMPLE}") from None
    if not host or parts.scheme not in _PORTS:
        raise AddressError(f"the address of the DICOM server names no host; {_EXAMPLE}")
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[parts.scheme]:
        place = f"{place}:{port}"
    url = f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
    return Address(url, unquote(parts.username or ""), unquote(parts.password or ""))


_EXAMPLE = "write it as in http://127.0.0.1:8042/dicom-web"


def series_folder(state: Path) -> Path:
    """Where the series of a state folder lie: what a DICOM server holds is mirrored there."""
    return state / "series"
