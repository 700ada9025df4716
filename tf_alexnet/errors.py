"""The exceptions of this package.

::

    AlexNetError                     exit code
    ├── UsageError                   2   the call itself is wrong
    │   ├── LayerError                   no such layer or blob
    │   ├── PresetError                  no such preset, or one that needs more than was given
    │   └── InputError                   an array of the wrong dtype, rank, size or range
    ├── WeightsError                 3   a weight file is missing, damaged, or another network's
    ├── OutputError                  4   the result can't be written
    └── ImageError                   5   a photo can't be read (or too many of them)

Each is built from three parts, and reads as one line::

    <what was asked>: <what was found>. <what to do>
"""


def one_line(text: str) -> str:
    """`text` with line breaks and other control characters, as in file names, shown as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class AlexNetError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    asked : str
        What was asked for, usually the path or name the user gave.
    found : str
        What was found instead.
    advice : str
        What to do now, a sentence or two, full stop included.

    Attributes
    ----------
    exit_code : int
        What the command line exits with.
    """

    exit_code = 1
    ag_pass_through = True  # TensorFlow's AutoGraph would raise another type with a long text

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
    """A preset that does not exist, or that needs an argument which was not given."""


class InputError(UsageError):
    """An array of the wrong dtype, rank, size or value range."""


class WeightsError(AlexNetError):
    """A weight file that is missing, damaged, or does not fit the network."""

    exit_code = 3


class OutputError(AlexNetError):
    """A result that can't be written where it was asked for."""

    exit_code = 4


class ImageError(AlexNetError):
    """A photo that can't be read, or too many of them.

    Attributes
    ----------
    code : str
        The reason in a word, for tables of failures: one of `tf_alexnet.extraction.REASONS`.
    """

    exit_code = 5

    def __init__(self, asked: str, found: str, advice: str, code: str = "unreadable"):
        super().__init__(asked, found, advice)
        self.code = code
