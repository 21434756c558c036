"""The command line, and the MONAI Label app when the server loads this folder with ``--app .``."""

if __name__ == "__main__":
    from svgd_label.cli import main

    main()
else:
    from svgd_label.server.app import SVGDLabel

    __all__ = ["SVGDLabel"]
