"""Tasks: one typed, validated object each, read from YAML, and the transforms and networks built from it."""

from svgd_label.tasks.task import Task, TaskError, load_task, preset_names, read_task

__all__ = ["Task", "TaskError", "load_task", "preset_names", "read_task"]
