"""Files that people write, read whole: small ones, in which a mistake must cost neither memory nor time."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path, at_most: int) -> str:
    """The UTF-8 text of a file, or of a pipe, of at most so many characters; little more than that is read of it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or not UTF-8; the text says which, without naming the file.
    """
    with path.open(encoding="utf-8") as file:
        try:
            text = file.read(at_most + 1)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error}") from None
    if len(text) > at_most:
        raise ValueError(f"larger than {at_most:,} characters")
    return text
