from helpers.command_line import lightconv

__all__ = ["lightconv"]
