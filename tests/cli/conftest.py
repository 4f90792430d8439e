from helpers.command_line import lightconv, told

__all__ = ["lightconv", "told"]
