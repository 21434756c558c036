"""Sessions, which hold images that are not of the study: how old and half-made ones go."""

import logging
import shutil
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions

logger = logging.getLogger(__name__)

_HALF_MADE_SECONDS = 3600.0


def remove_expired(sessions: Sessions) -> None:
    """Removes sessions that have expired, and what a killed upload left an hour ago or longer.

    MONAI Label's own clean-up ends at such a left-over, and the server's start with it.
    """
    store = Path(sessions.store_path)
    for folder in store.iterdir() if store.is_dir() else ():
        try:
            session = sessions.get_session(folder.name, update_ts=False, fetch_cache=False)
            ends = session.last_access_ts + session.expiry if session else folder.stat().st_mtime + _HALF_MADE_SECONDS
        except (OSError, ValueError, TypeError, AttributeError):  # a damaged meta.info
            ends = 0.0
        if ends < time.time() and folder.is_dir() and not folder.is_symlink():
            logger.info("The session %s is removed.", folder.name)
            sessions.pop(folder.name, None)
            shutil.rmtree(folder, ignore_errors=True)
