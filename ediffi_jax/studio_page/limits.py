"""What a stranger at the page may ask for, and pictures checked against it before they are decoded."""

from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ediffi_jax.errors import UserError

READABLE = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class StudioError(UserError):
    """Something asked of the page that it cannot do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one request.

    Attributes:
        upload_mb: size of a file, in 10^6 bytes.
        pixels: of a picture that is sent.
        steps: of a stage's solver.
        pictures: made at once.
        characters: of a prompt.
        waiting: requests in the queue, over all users.
    """

    upload_mb: float = 8.0
    pixels: int = 25_000_000
    steps: int = 100
    pictures: int = 4
    characters: int = 1000
    waiting: int = 16

    def open_picture(self, source: str | os.PathLike | bytes, what: str) -> Image.Image:
        """A picture from a file or bytes, decoded only if it is small enough.

        Args:
            source: path, or the file's content.
            what: how messages call it.

        Raises:
            StudioError: too many bytes or pixels, or no picture.
        """
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > self.upload_mb * 1e6:
            raise StudioError(f"{what} has {size / 1e6:.1f} MB; expected at most {self.upload_mb:g} MB")
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            picture = Image.open(file, formats=READABLE)
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise StudioError(f"{what} is not a picture that can be read; expected {', '.join(READABLE)}") from error
        if picture.width * picture.height > self.pixels:
            raise StudioError(
                f"{what} has {picture.width}x{picture.height} pixels; expected at most {self.pixels / 1e6:g} million"
            )
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise StudioError(f"{what} is damaged: {' '.join(str(error).split())}") from error
        return picture
