"""Models in formats for serving: exported, scored on the task, and timed next to the original."""

from hf_distill.exporting.export import Attempt, ExportReport, export

__all__ = ["Attempt", "ExportReport", "export"]
