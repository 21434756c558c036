"""The page at /svgd/, which shows people where a study stands: three files for the browser, and what they ask for."""

from svgd_label.server.page.routes import page_routes

__all__ = ["page_routes"]
