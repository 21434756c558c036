"""What this app adds to the OHIF viewer that MONAI Label serves: a script at the end of its ``app-config.js``."""

from pathlib import Path

import monailabel
from fastapi import APIRouter, Depends, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

_STOCK = Path(monailabel.__file__).parent / "endpoints" / "static" / "ohif" / "app-config.js"
_SCRIPT = ("handles.js", "annotate.js", "doubt.js", "bar.js")

router = APIRouter(include_in_schema=False)


@router.get("/ohif/app-config.js", dependencies=[Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))])
def app_config() -> Response:
    """The configuration that MONAI Label ships for OHIF, unchanged, and after it the annotator's tools.

    OHIF reads this file before anything else of its own; it is the one that deployments are meant to replace.
    """
    script = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _SCRIPT)
    content = f"{_STOCK.read_text(encoding='utf-8')}\n(() => {{\n'use strict';\n{script}\n}})();\n"
    # A browser that has kept yesterday's script would not know today's server.
    return Response(content, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
