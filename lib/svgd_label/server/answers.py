"""What a client is told when a request cannot be met: a status and a sentence, as FastAPI passes them on."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from typing import Any

from fastapi import HTTPException

from svgd_label.errors import UserError
from svgd_label.pool.files import is_plain_id, is_plain_tag

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Turns what the disk or the state store refuses into the answer 507."""
    try:
        yield
    except HTTPException:
        raise
    except (OSError, sqlite3.OperationalError, UserError) as error:
        logger.warning("Nothing was stored: %s.", error)
        raise HTTPException(
            507,
            f"Nothing was stored ({error}): the server's disk is full, read-only or busy. Try again when it is not.",
        ) from error
    except sqlite3.DatabaseError as error:
        logger.warning("Nothing was stored: %s.", error)
        raise HTTPException(
            507,
            f"Nothing was stored ({error}): the server's state store is damaged. Restart the server, which mends it or "
            "makes a new one from the images and labels, and save again.",
        ) from error


def plain_image(image: Any) -> str:
    """An image id as a client sent it; 404 where it could name anything but a file in one folder."""
    if not isinstance(image, str) or not is_plain_id(image):
        raise HTTPException(404, f"{str(image)[:100]!r} cannot be the id of an image.")
    return image


def plain_tag(tag: Any) -> str:
    """A label's tag as a client sent it, or 404."""
    # The enumeration DefaultLabelTag is a str whose text is its name.
    tag = getattr(tag, "value", tag)
    if not isinstance(tag, str) or not is_plain_tag(tag):
        raise HTTPException(404, f"{str(tag)[:100]!r} cannot be a tag: use letters, digits, _ . and -.")
    return tag


def dictionary(info: Any) -> dict[str, Any]:
    """Parameters as a client sent them, or 400 where they are no object, or one that no answer could hold again."""
    if not isinstance(info, dict):
        raise HTTPException(400, "The parameters must be a JSON object, as in {}.")
    try:
        json.dumps(info, allow_nan=False, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError) as error:  # NaN, half a character, a thousand brackets
        raise HTTPException(400, f"The parameters cannot be stored as JSON ({str(error)[:100]}).") from error
    return dict(info)


def unknown_image(image: str) -> HTTPException:
    """404 with a sentence."""
    return HTTPException(404, f"There is no image {image}.")
