"""SVGD Label: active learning for medical image segmentation with a committee trained by SVGD."""

__version__ = "0.1.0"
