"""The command `tf-alexnet`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from tf_alexnet.cli import (
    console,
    demo,
    evaluate,
    export,
    extract,
    predict,
    serve,
    summary,
    train,
    visualize,
    weights,
)
from tf_alexnet.cli.commands import CallError, Commands, usage_error
from tf_alexnet.cli.options import Quiet
from tf_alexnet.errors import AlexNetError, OutputError, UsageError
from tf_alexnet.version import VERSION

app = Commands(
    name="tf-alexnet",
    help="Caffe's AlexNet in TensorFlow: verified weights, fc7 or any layer, top-5.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    predict.predict,
    extract.extract,
    train.train,
    evaluate.evaluate,
    export.export,
    serve.serve,
    summary.summary,
):
    app.command()(command)
app.add_typer(weights.app, name="weights")
app.add_typer(visualize.app, name="visualize")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tf-alexnet {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Caffe's AlexNet in TensorFlow: verified weights, fc7 or any layer, top-5."""


def main() -> None:
    """Run a command; a user's mistake gives a line and an exit code, never a traceback."""
    # Exit cleanly on SIGTERM too, so that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with console.notes():
            sys.exit(app(prog_name="tf-alexnet", standalone_mode=False))
    except CallError as call:
        if (problem := usage_error(call)) is not None:
            console.error(str(problem))
        sys.exit(UsageError.exit_code)
    except AlexNetError as problem:
        console.error(str(problem))
        sys.exit(problem.exit_code)
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output is gone, as with `head`; Python must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(OutputError.exit_code)


def run() -> NoReturn:
    """Run `main` as a program, and exit without TensorFlow's teardown, which takes a second."""
    try:
        main()
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = OutputError.exit_code
    os._exit(code)


if __name__ == "__main__":
    run()
