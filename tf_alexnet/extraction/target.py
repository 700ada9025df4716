"""What an output's name asks for: one file or a folder of shards, of which kind, and where."""

from __future__ import annotations

import os

from tf_alexnet import remote
from tf_alexnet.errors import OutputError, UsageError
from tf_alexnet.extraction.storage import Folder, folder_at
from tf_alexnet.files import check_folder

SUFFIXES = (".h5", ".hdf5", ".npz", ".npy", ".parquet")


class Target:
    """An output and the places that belong to it.

    Parameters
    ----------
    output : path or URL
        A name that ends in a slash, or has no suffix, is a folder of shards: of Parquet if it
        ends in ``.parquet/``, else of HDF5. Any other is one file.

    Attributes
    ----------
    location : str
        The file or the folder.
    is_folder : bool
        Whether shards are the result.
    suffix : str
        Kind of the file, or of the shards.
    work : LocalFolder or RemoteFolder
        Where manifest, lock and shards lie: the folder itself, or ``<file>.job`` beside it.
    shards : LocalFolder or RemoteFolder
        A folder in `work`.
    names : str or None
        The file of names that belongs to an ``.npy``.
    """

    def __init__(self, output: str | os.PathLike):
        given = os.fsdecode(os.fspath(output))
        self.location = given.rstrip("/") or given
        base = os.path.basename(self.location)
        suffix = os.path.splitext(base)[1].lower()
        self.is_folder = given != self.location or not suffix
        if self.is_folder:
            self.suffix = ".parquet" if suffix == ".parquet" else ".h5"
        elif suffix in SUFFIXES:
            self.suffix = suffix
        else:
            raise UsageError(
                f"output {given}",
                f"no format has the suffix {suffix!r}",
                f"Use one of {', '.join(SUFFIXES)}, or end the name in / for a folder of shards.",
            )
        work = self.location if self.is_folder else f"{self.location}.job"
        self.work: Folder = folder_at(work)
        self.shards: Folder = folder_at(f"{work}/shards")
        self.shard_suffix = self.suffix if self.is_folder else ".h5"
        self.names = f"{self.location}.json" if self.suffix == ".npy" else None

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        """Whether it lies behind a URL."""
        return remote.is_url(self.location)

    @property
    def parent(self) -> Folder:
        """The folder that the file lies in."""
        if self.is_remote:
            return folder_at(self.location.rpartition("/")[0])
        return folder_at(os.path.dirname(self.location) or ".")

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.location.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether the file is there already."""
        return not self.is_folder and self.parent.size(self.name) is not None

    def check(self) -> None:
        """Refuse an output that could not be written.

        Raises
        ------
        UsageError
            If pyarrow is needed and not installed.
        OutputError
            If the folder is missing or not writable, or a file is a folder or the other way round.
        """
        if self.suffix == ".parquet":
            try:
                import pyarrow  # noqa: F401
            except ImportError:
                raise UsageError(
                    self.location,
                    "pyarrow is not installed",
                    "Install it: pip install 'tf-alexnet[parquet]'.",
                ) from None
        if self.is_remote:
            return
        if not self.is_folder:
            if os.path.isdir(self.location):
                raise OutputError(
                    self.location, "it is a folder", "Name a file in it, or end the name in /."
                )
            check_folder(self.location)
        elif os.path.isdir(self.location):
            check_folder(os.path.join(self.location, "shards.x"))
        elif os.path.lexists(self.location):
            raise OutputError(self.location, "it is a file", "Name a folder, or give it a suffix.")
        else:
            check_folder(self.location)


def check_output(path: str | os.PathLike) -> None:
    """Refuse an output that could not be written, before any work is done for it.

    Raises
    ------
    UsageError
        If no format has its suffix, or pyarrow is needed and not installed.
    OutputError
        If the folder is missing or not writable, or a file is a folder or the other way round.
    """
    Target(path).check()
