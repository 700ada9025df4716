"""A web page and HTTP endpoints for a network (extra ``serve``).

>>> service = Service("imagenet")  # doctest: +SKIP
>>> service.start()  # doctest: +SKIP
>>> run_server(create_app(service), listen("127.0.0.1", 8000))  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from tf_alexnet.lazy import lazy_names

if TYPE_CHECKING:
    from tf_alexnet.serve.app import create_app as create_app
    from tf_alexnet.serve.limits import Limits as Limits
    from tf_alexnet.serve.server import is_loopback as is_loopback
    from tf_alexnet.serve.server import listen as listen
    from tf_alexnet.serve.server import run_server as run_server
    from tf_alexnet.serve.service import Service as Service

_HOMES = {
    "Limits": "tf_alexnet.serve.limits",
    "Service": "tf_alexnet.serve.service",
    "create_app": "tf_alexnet.serve.app",
    "is_loopback": "tf_alexnet.serve.server",
    "listen": "tf_alexnet.serve.server",
    "run_server": "tf_alexnet.serve.server",
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
