"""`tf-alexnet serve`."""

from __future__ import annotations

import importlib.util
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from tf_alexnet.cli import console
from tf_alexnet.cli.options import Architecture, Engine, EngineName, Quiet
from tf_alexnet.errors import UsageError

if TYPE_CHECKING:
    from tf_alexnet.training import Run

_PACKAGES = ("starlette", "uvicorn", "python_multipart")
_SHORTEST_TOKEN = 16


def serve(
    network: Annotated[
        str,
        typer.Argument(metavar="[RUN|WEIGHTS]", help="RUN, weight file, or name in the catalogue."),
    ] = "imagenet",
    index: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Output of `extract` to search for similar photos."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="TF_ALEXNET_TOKEN",
            help="Bearer token for all requests; required unless HOST is loopback.",
        ),
    ] = None,
    architecture: Architecture = None,
    engine: Engine = EngineName.auto,
    quiet: Quiet = False,
) -> None:
    """Serve a web page to try the network on, and HTTP endpoints."""
    _check_installed()
    if token is not None and len(token) < _SHORTEST_TOKEN:
        found = f"{len(token)} characters, fewer than {_SHORTEST_TOKEN}"
        raise UsageError("--token", found, "Use a longer one, of random characters.")
    run = console.open_run(None, network)
    console.check_names(None if run else network, architecture)
    from tf_alexnet.serve import is_loopback, listen

    with listen(host, port) as bound:
        local = is_loopback(bound)
        if not local and token is None:
            raise UsageError(
                f"--host {host}",
                "other machines could use it, but no token is set",
                "Set --token or TF_ALEXNET_TOKEN, or leave --host out.",
            )
        chosen = console.choose_engine(engine.value)
        weights = run or console.find_weights(network)
        if chosen == "tensorflow":
            console.load_tensorflow()
        _serve(bound, weights, architecture, index, chosen, host, token, local)


def _serve(
    bound: socket.socket,
    weights: Run | str,
    architecture: str | None,
    index: str | None,
    engine: str,
    host: str,
    token: str | None,
    local: bool,
) -> None:
    from tf_alexnet.serve import Service, create_app, run_server
    from tf_alexnet.serve.guard import LOOPBACK

    service = Service(weights, architecture=architecture, index=index, engine=engine)
    try:
        service.start()
        if isinstance(weights, str):
            console.unknown_weights_note(service.extractor)
        app = create_app(service, token=token, hosts={*LOOPBACK, host.lower()} if local else None)
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{bound.getsockname()[1]}/"
        run_server(app, bound, ready=lambda: print(f"{url} (Ctrl+C to stop)", flush=True))
    finally:
        service.close()


def _check_installed() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "serve",
            f"{', '.join(missing)} is not installed",
            "Install it: pip install 'tf-alexnet[serve]'.",
        )
