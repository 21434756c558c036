"""The datastore for studies on a DICOMweb server: the safe one over a mirrored folder, and labels sent back as SEG."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from svgd_label.pool import FINAL, Pool
from svgd_label.server.answers import plain_tag
from svgd_label.server.datastore import SafeDatastore
from svgd_label.server.dicom.address import series_folder
from svgd_label.server.dicom.mirror import COUNT, INFO, Mirror
from svgd_label.server.dicom.outbox import Outbox
from svgd_label.server.dicom.takeover import Takeover
from svgd_label.server.dicom.web import DicomServer
from svgd_label.tasks import Task

SEGMENTATION = "dicom_seg"
"""In a label's info: what has become of its SEG."""


class DicomDatastore(SafeDatastore):
    """``SafeDatastore`` over the series of a DICOMweb server, which are the images, by SeriesInstanceUID.

    Args:
        server: who holds the series and takes the SEGs.
        search_filter: which series are images, as MONAI Label's setting has it.
        pause: seconds between two looks at the server.
        state, pool, task, auto_reload, beside, on_change: as for ``SafeDatastore``; the series lie in the state folder.
    """

    def __init__(
        self,
        server: DicomServer,
        search_filter: Mapping[str, Any],
        *,
        pause: float,
        state: Path,
        pool: Pool,
        task: Task,
        auto_reload: bool,
        beside: bool = False,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(
            series_folder(state),
            state=state,
            pool=pool,
            task=task,
            auto_reload=auto_reload,
            beside=beside,
            on_change=on_change,
        )
        self.server = server
        self.outbox = Outbox(server, self.studies, task)
        self.mirror = Mirror(
            server,
            self.studies,
            search_filter,
            pause=pause,
            changing=self.changing,
            on_change=on_change,
            on_answer=self.outbox.retry,
            look_further=Takeover(server, self._task.name, self, on_change).look,
        )

    def start(self) -> None:
        """Begins to follow the server and to send; once, and in the serving process only."""
        self.mirror.start()
        self.outbox.start()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """As ``SafeDatastore``, but for what the mirror wrote: by it viewers and the mirror find the series."""
        for name in (*INFO, COUNT):
            if isinstance(info, dict) and name in info:
                raise HTTPException(
                    400, f"{name} comes from the DICOM server and cannot be changed here: leave it out."
                )
        super().update_image_info(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refused: the images are the server's."""
        raise HTTPException(409, "The images of this study come from a DICOM server: store the series there.")

    def remove_image(self, image_id: str) -> None:
        """Refused, as ``add_image``."""
        raise HTTPException(409, "The images of this study come from a DICOM server: remove the series there.")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As ``SafeDatastore``; a final label is then sent to the server, for which nobody waits."""
        image = super().save_label(image_id, label_filename, label_tag, label_info)
        self.outbox.wake()
        return image

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """As ``SafeDatastore``, with the state of the SEG."""
        info = super().get_label_info(label_id, label_tag)
        return {**info, SEGMENTATION: self.outbox.state(label_id)} if info and plain_tag(label_tag) == FINAL else info

    def json(self) -> dict[str, Any]:
        """As ``SafeDatastore``, with the state of each final label's SEG in its info."""
        everything = super().json()
        for image, state in self.outbox.states().items():
            if label := everything["objects"].get(image, {}).get("labels", {}).get(FINAL):
                label["info"][SEGMENTATION] = state
        return everything
