"""`Counters`: metrics of a running server, as text for Prometheus."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_PREFIX = "tf_alexnet_"


class Counters:
    """Counts of requests, photos and batches since the server started."""

    def __init__(self):
        self._requests: Counter[tuple[str, int]] = Counter()
        self._photos: Counter[str] = Counter()
        self._seconds: dict[str, _Histogram] = {}
        self._batches = _Histogram(_SIZES)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests[endpoint, status] += 1
        self._seconds.setdefault(endpoint, _Histogram(_SECONDS)).add(seconds)

    def photo(self, result: str) -> None:
        """Count a photo: ``ok``, or the code of a failure."""
        self._photos[result] += 1

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.add(size)

    def text(self, gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
        """All metrics in Prometheus's text format 0.0.4.

        Parameters
        ----------
        gauges : mapping of str to float
            Current values, by name.
        info : mapping of str to str
            Labels of ``tf_alexnet_info``, whose value is 1.
        """
        lines = _head("info", "gauge", "The network served.")
        lines.append(f"{_PREFIX}info{_labels(info)} 1")
        for name, value in gauges.items():
            lines += [*_head(name, "gauge", name.replace("_", " ")), f"{_PREFIX}{name} {value:g}"]
        lines += _head("requests_total", "counter", "Requests by endpoint and status.")
        for (endpoint, status), count in sorted(self._requests.items()):
            labels = _labels({"endpoint": endpoint, "status": str(status)})
            lines.append(f"{_PREFIX}requests_total{labels} {count}")
        lines += _head("photos_total", "counter", "Photos by result.")
        for result, count in sorted(self._photos.items()):
            lines.append(f"{_PREFIX}photos_total{_labels({'result': result})} {count}")
        lines += _head("request_seconds", "histogram", "Duration of requests.")
        for endpoint, histogram in sorted(self._seconds.items()):
            lines += histogram.lines("request_seconds", {"endpoint": endpoint})
        lines += _head("batch_size", "histogram", "Photos per batch.")
        lines += self._batches.lines("batch_size", {})
        return "\n".join(lines) + "\n"


class _Histogram:
    """Cumulative counts of values by upper bound."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        lines, total = [], 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            total += count
            text = bound if isinstance(bound, str) else f"{bound:g}"
            lines.append(f"{_PREFIX}{name}_bucket{_labels({**labels, 'le': text})} {total}")
        lines.append(f"{_PREFIX}{name}_sum{_labels(labels)} {self._sum:.6g}")
        lines.append(f"{_PREFIX}{name}_count{_labels(labels)} {total}")
        return lines


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
