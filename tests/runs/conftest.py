from helpers.command_line import lightconv, trained

__all__ = ["lightconv", "trained"]
