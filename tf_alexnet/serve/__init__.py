"""A web page and HTTP endpoints for a network (extra ``serve``).

>>> service = Service("imagenet")
>>> service.start()
>>> run_server(create_app(service), listen("127.0.0.1", 8000))
"""

from tf_alexnet.lazy import lazy_names

_HOMES = {
    "Limits": "tf_alexnet.serve.limits",
    "Service": "tf_alexnet.serve.service",
    "create_app": "tf_alexnet.serve.app",
    "is_loopback": "tf_alexnet.serve.server",
    "listen": "tf_alexnet.serve.server",
    "run_server": "tf_alexnet.serve.server",
}

__all__ = sorted(_HOMES)


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
