"""All ways to write one server's address name one state folder, and its password stays out of what is shown."""

from pathlib import Path

import pytest
from tests.dicom.conftest import free_port

from svgd_label.server import start
from svgd_label.server.conf import Conf
from svgd_label.server.dicom.address import AddressError, read_address


@pytest.mark.parametrize(
    "written",
    [
        "http://pacs:80/dicom-web/",
        "http://PACS/dicom-web",
        "http://al:s3cret@pacs/dicom-web//",
        "http://pacs/dicom-web?a=b",
    ],
)
def test_one_server_has_one_state_folder(written: str) -> None:
    plain = read_address("http://pacs/dicom-web")
    assert read_address(written).url == plain.url
    assert Conf.read({}).state_folder(written) == plain.state
    assert plain.state.parent == Path.home() / ".local" / "share" / "svgd-label"


def test_other_servers_have_other_folders_and_a_setting_overrides(tmp_path: Path) -> None:
    addresses = ["http://pacs/dicom-web", "https://pacs/dicom-web", "http://pacs:8042/dicom-web", "http://pacs/other"]
    assert len({read_address(address).state for address in addresses}) == 4
    assert Conf.read({"state": str(tmp_path)}).state_folder(addresses[0]) == tmp_path


@pytest.mark.parametrize("written", ["http://", "http:///dicom-web", "http://al:s3cret@pacs:port/", "http://[x/"])
def test_what_names_no_server_is_refused_without_repeating_it(written: str) -> None:
    with pytest.raises(AddressError, match=r"write it as in http://127") as error:
        read_address(written)
    assert "s3cret" not in str(error.value)


def test_a_password_in_the_address_goes_into_a_setting_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ROOT", tmp_path)
    (tmp_path / "apps" / "svgd").mkdir(parents=True)
    prepared = start.prepare(
        "http://al:s%20cret@127.0.0.1:8042/dicom-web/", None, host="127.0.0.1", port=free_port(), conf={}
    )
    assert prepared.environment == {
        "MONAI_LABEL_DICOMWEB_USERNAME": "al",
        "MONAI_LABEL_DICOMWEB_PASSWORD": "s cret",
    }
    assert "cret" not in " ".join(prepared.arguments) + prepared.welcome
    assert "http://127.0.0.1:8042/dicom-web" in prepared.arguments
    assert "/ohif/" in prepared.welcome
