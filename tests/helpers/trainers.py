"""Arguments of Trainers that print and write nothing."""

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
SILENT = {**QUIET, "enable_checkpointing": False}
