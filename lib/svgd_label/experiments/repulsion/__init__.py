"""The study of drive and repulsion of SVGD against a plain ensemble."""
