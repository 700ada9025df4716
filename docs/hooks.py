"""MkDocs hooks: generate the command-line reference."""

import html
import re
import subprocess
import sys

_MARK = "<!-- the command line -->"


def on_page_markdown(markdown, **_):
    """Replace the mark with Typer's description of every command."""
    return markdown.replace(_MARK, _commands()) if _MARK in markdown else markdown


def _commands():
    command = [sys.executable, "-m", "typer", "tf_alexnet.cli.main", "utils", "docs"]
    done = subprocess.run(
        [*command, "--name", "tf-alexnet"], capture_output=True, text=True, check=True
    )
    pages = html.unescape(done.stdout)
    # Typer truncates the help in lists of subcommands; every command has its own section below.
    pages = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", pages)
    pages = re.sub(r"^\* `--help`: .*\n", "", pages, flags=re.M)
    pages = re.sub(r"\*\*Options\*\*:\n\n(?!\*)", "", pages)
    return pages.partition("\n")[2]  # the page has its own title
