"""A DICOMweb server as the mirror and the outbox need it: what series there are, their files, and storing one."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from requests.adapters import HTTPAdapter

from svgd_label.errors import UserError
from svgd_label.server.dicom.address import Address

logger = logging.getLogger(__name__)
# They tell of every search, of which there is one a minute, and print a traceback where a server is away.
logging.getLogger("dicomweb_client").setLevel(logging.WARNING)
logging.getLogger("retrying").setLevel(logging.ERROR)
# What it warns of may be a patient's data.
warnings.filterwarnings("ignore", module="pydicom")

T = TypeVar("T")

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_TIMEOUT = (5.0, 60.0)  # seconds to connect, and without a byte
_AWAY = (401, 403, 408, 425, 429)
_TOLD: set[object] = set()


class ServerError(UserError):
    """What a server did not do. ``is_outage``: nothing is wrong with what was asked, another time it will do."""

    def __init__(self, sentence: str, *, is_outage: bool) -> None:
        super().__init__(sentence)
        self.is_outage = is_outage


@dataclass(frozen=True)
class Series:
    """A series as a search lists it; ``instances`` is None where the server does not count them."""

    study: str
    uid: str
    modality: str
    instances: int | None


class DicomServer:
    """QIDO-RS, WADO-RS and STOW-RS, with the credentials and prefixes of MONAI Label's settings.

    Credentials in the address are used where the settings have none.
    """

    def __init__(self, address: Address) -> None:
        self.url = address.url
        user = settings.MONAI_LABEL_DICOMWEB_USERNAME or address.username
        password = settings.MONAI_LABEL_DICOMWEB_PASSWORD or address.password
        self.credentials = (user, password) if user and password else None
        session = requests.Session()
        session.auth = self.credentials
        for scheme in ("http://", "https://"):
            session.mount(scheme, _WithTimeout())
        self._client = DICOMwebClient(
            url=address.url,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX or None,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX or None,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX or None,
        )
        self._client.set_http_retry_params(retry=False)  # who asks decides when to ask again

    def series(self, search_filter: Mapping[str, Any]) -> list[Series]:
        """All series that match, page by page.

        Raises:
            ServerError: no answer, or none that can be understood.
        """

        def page(offset: int) -> dict[str, Series]:
            entries = self._client.search_for_series(
                search_filters=dict(search_filter), fields=["NumberOfSeriesRelatedInstances"], offset=offset
            )
            return {series.uid: series for series in map(_series, entries) if series is not None}

        return list(self._all(page).values())

    def instances(self, series: Series) -> Iterator[Dataset]:
        """The files of a series, one at a time.

        Raises:
            ServerError: the series is not there or came incomplete.
        """
        with self._sentences():
            yield from self._client.iter_series(series.study, series.uid)

    def instance_uids(self, series: Series) -> list[str]:
        """SOPInstanceUIDs of the instances of a series.

        Raises:
            ServerError: no answer, or none that can be understood.
        """

        def page(offset: int) -> dict[str, None]:
            entries = self._client.search_for_instances(series.study, series.uid, offset=offset)
            return {uid: None for uid in (_first(entry, "SOPInstanceUID") for entry in entries) if is_uid(uid)}

        return list(self._all(page))

    def head(self, series: Series, uid: str, keywords: Sequence[str]) -> Dataset:
        """Some attributes of an instance, for which its pixels need not be fetched.

        Raises:
            ServerError: it is not there.
        """
        tags = [f"{tag_for_keyword(keyword):08X}" for keyword in keywords]
        with self._sentences():
            entry = self._client.retrieve_instance_metadata(series.study, series.uid, uid)
            return Dataset.from_json({tag: entry[tag] for tag in tags if tag in entry})

    def instance(self, series: Series, uid: str) -> Dataset:
        """One file of a series.

        Raises:
            ServerError: it is not there or came incomplete.
        """
        with self._sentences():
            return self._client.retrieve_instance(series.study, series.uid, uid)

    def store(self, instance: Dataset) -> None:
        """Stores one instance; storing it again changes nothing.

        Raises:
            ServerError: the server is away, or refuses it.
        """
        with self._sentences():
            answer = self._client.store_instances([instance])
        if failed := answer.get("FailedSOPSequence"):
            raise ServerError(f"it was refused with the reason {failed[0].get('FailureReason')}", is_outage=False)

    def _all(self, page: Callable[[int], dict[str, T]]) -> dict[str, T]:
        """What a search finds, from page to page."""
        found: dict[str, T] = {}
        while True:
            with self._sentences():
                new = {uid: entry for uid, entry in page(len(found)).items() if uid not in found}
            if not new:  # the end, or a server that does not count pages
                return found
            found.update(new)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """No sentence holds an address with a query, which could name a patient, or a password."""
        try:
            yield
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = ": check MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD" if status in (401, 403) else ""
            raise ServerError(
                f"the DICOM server {self.url} answered with HTTP {status}{hint}",
                is_outage=status >= 500 or status in _AWAY,
            ) from None
        except requests.Timeout:
            raise ServerError(f"the DICOM server {self.url} does not answer in time", is_outage=True) from None
        except requests.ConnectionError:
            raise ServerError(f"the DICOM server {self.url} cannot be reached", is_outage=True) from None
        except requests.RequestException as error:
            raise ServerError(
                f"the DICOM server {self.url} broke off its answer ({type(error).__name__})", is_outage=True
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ServerError(
                f"the answer of the DICOM server {self.url} is not understood ({type(error).__name__})",
                is_outage=False,
            ) from error


class _WithTimeout(HTTPAdapter):
    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or _TIMEOUT
        answer = super().send(request, *args, **kwargs)
        kind = answer.headers.get("Content-Type", "")
        # With a "; charset=utf-8" behind it, dicomweb_client takes JSON or XML for no answer at all.
        if kind.startswith("application/dicom+"):
            answer.headers["Content-Type"] = kind.partition(";")[0].strip()
        return answer


def is_uid(text: object) -> bool:
    """Whether a text is a DICOM UID, and so safe as the name of a file."""
    return isinstance(text, str) and len(text) <= 64 and _UID.fullmatch(text) is not None


def _series(entry: Mapping[str, Any]) -> Series | None:
    """Of DICOM's JSON only what is needed: what is wrong with other attributes hides no series."""
    study, uid = _first(entry, "StudyInstanceUID"), _first(entry, "SeriesInstanceUID")
    if not is_uid(study) or not is_uid(uid):
        if uid not in _TOLD:
            _TOLD.add(uid)
            logger.warning("The DICOM server lists a series without valid UIDs, which is passed over: %.200r", uid)
        return None
    try:
        count = int(_first(entry, "NumberOfSeriesRelatedInstances"))
    except (TypeError, ValueError):
        count = None
    return Series(study, uid, str(_first(entry, "Modality") or ""), count)


def _first(entry: Mapping[str, Any], keyword: str) -> Any:
    values = entry.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value")
    return values[0] if values else None
