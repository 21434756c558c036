"""An uploaded label file becomes the task's values on the image's own grid, or is refused in one sentence."""

from svgd_label.labels.convert import ConvertedLabel, check_grid, convert_label
from svgd_label.labels.errors import LabelError
from svgd_label.labels.names import plain_name
from svgd_label.labels.write import write_label

__all__ = ["ConvertedLabel", "LabelError", "check_grid", "convert_label", "plain_name", "write_label"]
