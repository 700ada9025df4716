"""The exceptions of this package.

::

    AlexNetError                     exit code
    ├── UsageError                   2   the call itself is wrong
    │   ├── LayerError                   no such layer or blob
    │   ├── PresetError                  no such preset, or one that lacks an argument
    │   └── InputError                   an array of the wrong dtype, rank, size or range
    ├── WeightsError                 3   a weight file is missing, damaged, or another network's
    ├── OutputError                  4   the result can't be written
    └── ImageError                   5   a photo can't be read (or too many of them)

Each message is one line in three parts::

    <what was asked>: <what was found>. <what to do>
"""


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters escaped; file names may hold them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def counted(number: int, one: str, many: str) -> str:
    """A number and what it counts: ``counted(n, "photo is", "photos are")``."""
    return f"{number:,} {one if number == 1 else many}"


class AlexNetError(Exception):
    """Base class of the errors this package raises on purpose.

    Parameters
    ----------
    asked : str
        What was asked for, usually the path or name the user gave.
    found : str
        What was found instead.
    advice : str
        What to do about it: a sentence or two, with the full stop.

    Attributes
    ----------
    exit_code : int
        Exit code of the command line.
    """

    exit_code = 1
    ag_pass_through = True  # else TensorFlow's AutoGraph wraps it in another type

    def __init__(self, asked: str, found: str, advice: str):
        super().__init__(asked, found, advice)
        self.asked, self.found, self.advice = asked, found, advice

    def __str__(self) -> str:
        return one_line(f"{self.asked}: {self.found}. {self.advice}")


class UsageError(AlexNetError, ValueError):
    """The call itself is wrong: a name or a combination of arguments that does not exist."""

    exit_code = 2


class LayerError(UsageError):
    """A layer or blob that the network does not have."""


class PresetError(UsageError):
    """A preset that does not exist, or that lacks an argument it needs."""


class InputError(UsageError):
    """An array of the wrong dtype, rank, size or value range."""


class WeightsError(AlexNetError):
    """A weight file that is missing, damaged, or does not fit the network."""

    exit_code = 3


class OutputError(AlexNetError):
    """A result that can't be written to the given path."""

    exit_code = 4


class ImageError(AlexNetError):
    """A photo that can't be read, or too many of them.

    Attributes
    ----------
    code : str
        Short reason for tables of failures: one of `tf_alexnet.extraction.REASONS`.
    """

    exit_code = 5

    def __init__(self, asked: str, found: str, advice: str, code: str = "unreadable"):
        super().__init__(asked, found, advice)
        self.code = code
