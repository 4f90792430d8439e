from helpers.command_line import lightconv, mistake, trained

__all__ = ["lightconv", "mistake", "trained"]
