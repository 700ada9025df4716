"""Typer, with this package's help and error messages."""

from __future__ import annotations

import typer
from typer.core import TyperCommand, TyperGroup

from tf_alexnet.errors import UsageError

# Typer's base class of usage errors has no public name.
CallError = typer.BadParameter.__base__


class _PlainFlags:
    """A command whose help shows flags as ``--force``, not as ``--force <bool>``."""

    def get_params(self, ctx):
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Command(_PlainFlags, TyperCommand):
    pass


class _Group(_PlainFlags, TyperGroup):
    pass


class Commands(typer.Typer):
    """A group of commands; without a command it shows its help."""

    def __init__(self, **settings):
        super().__init__(cls=_Group, no_args_is_help=True, **settings)

    def command(self, name=None, **settings):
        """Register a function as a command, as `typer.Typer.command` does."""
        return super().command(name, cls=_Command, **settings)


def usage_error(problem: CallError) -> UsageError | None:
    """Typer's error as one of ours; None if the help was shown instead."""
    text = " ".join(problem.format_message().replace("Value error, ", "").split()).rstrip(".")
    if not text:
        return None
    command = problem.ctx.command_path if problem.ctx else "tf-alexnet"
    text, _, close = (text[0].lower() + text[1:]).partition(" Did you mean ")
    advice = f"Did you mean {close} " if close else ""
    return UsageError(command, text.rstrip("."), f"{advice}See {command} --help.")
