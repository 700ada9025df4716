"""`Manifest`: which shards of a job are finished, in a file that is replaced, never changed."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field

from tf_alexnet.errors import OutputError
from tf_alexnet.extraction.storage import Folder

NAME = "manifest.json"


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    Attributes
    ----------
    name : str
        Its file, suffix included.
    inputs, rows, errors : int
        Photos, those with a row, and those without; `rows` + `errors` = `inputs`.
    size : int
        Bytes of the file.
    """

    name: str
    inputs: int
    rows: int
    errors: int
    size: int


@functools.cache  # a file of all shards is written after each: a million photos in shards of 64
def _line(record: ShardRecord) -> str:
    return json.dumps(asdict(record))


@dataclass
class Manifest:
    """What a job is and how far it got.

    Attributes
    ----------
    job : dict of str to str
        Its `tf_alexnet.extraction.plan.fingerprint`.
    extends : bool
        Whether the output that was there before is the beginning of this job's.
    shards : dict of str to ShardRecord
        The finished ones, by name without suffix.
    totals : dict
        ``inputs``, ``rows`` and ``errors`` of the whole job; empty before its end.
    """

    job: dict[str, str]
    extends: bool = False
    shards: dict[str, ShardRecord] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    def save(self, folder: Folder) -> None:
        """Replace the file in `folder`; it is the old one or this one whenever one looks.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        head = json.dumps({"job": self.job, "extends": self.extends, **self.totals}, indent=1)
        shards = ",\n  ".join(_line(record) for _, record in sorted(self.shards.items()))
        with folder.writing(NAME) as file:
            file.write(f'{head[:-2]},\n "shards": [\n  {shards}\n ]\n}}\n'.encode())

    @classmethod
    def read(cls, folder: Folder) -> Manifest | None:
        """The manifest in `folder`; None if there is none.

        Raises
        ------
        OutputError
            If what is there is none of ours.
        """
        text = folder.text(NAME)
        if text is None:
            return None
        try:
            content = json.loads(text)
            records = [ShardRecord(**record) for record in content["shards"]]
            totals = {x: content[x] for x in ("inputs", "rows", "errors") if x in content}
            job = {str(name): str(value) for name, value in content["job"].items()}
            shards = {record.name.rpartition(".")[0]: record for record in records}
            return cls(job, bool(content["extends"]), shards, totals)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OutputError(
                f"{folder}/{NAME}",
                "it is damaged, or not written by an extraction",
                "Pass --force (force=True) to begin anew.",
            ) from None
