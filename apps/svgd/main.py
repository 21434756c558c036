"""The MONAI Label app, for ``monailabel start_server --app apps/svgd``; everything is in the package."""

from svgd_label.server.app import SVGDLabel

__all__ = ["SVGDLabel"]
