"""Why a record is not taken, or was taken only after mending: every record ends under exactly one name.

`BAD` is damaged input, which `--max_bad_fraction` limits; `FILTERED` is sound input that was not wanted.
"""

from __future__ import annotations

from ediffi_jax.errors import UserError

BAD = {
    "empty_file": "no bytes",
    "not_an_image": "bytes that are no picture in a format known here",
    "truncated": "a picture that ends too early",
    "unreadable": "a damaged picture",
    "too_many_pixels": "more pixels than max_pixels, found from the header, never decoded",
    "image_missing": "a caption or a list names a picture that is not there",
    "tar_cut": "lost because a tar ends in the middle or cannot be read",
    "caption_missing": "no caption, or nothing left of it after cleaning",
    "caption_not_utf8": "a caption that is not UTF-8",
    "caption_unreadable": "a caption's JSON that cannot be read",
    "duplicate_id": "an id that an earlier record has",
}
FILTERED = {
    "other_file": "a file in the folder that is neither picture nor caption",
    "not_downloaded": "listed by img2dataset as not downloaded",
    "too_small": "shorter side below min_side",
    "too_long": "sides differ by more than max_aspect",
    "caption_short": "fewer words than min_words",
    "clip_low": "CLIP score below min_clip",
    "clip_unknown": "min_clip is set, and the record has no CLIP score",
    "aesthetic_low": "aesthetic score below min_aesthetic",
    "aesthetic_unknown": "min_aesthetic is set, and the record has no aesthetic score",
    "evaluation": "in, or near a picture in, the list of those that models are judged by",
    "duplicate": "the same bytes as another record's",
    "near_duplicate": "looks like another record's picture",
}
REASONS = BAD | FILTERED

# Not reasons: what was mended in a record that was taken.
MENDED = {
    "wrong_extension": "read by its contents, which are of another format than its name says",
    "animated": "its first frame was taken",
    "profile_unreadable": "its colour profile could not be applied; taken as sRGB",
}


class PrepareError(UserError):
    """Input, settings or a folder that a data set cannot be prepared with."""


class Rejection(Exception):
    """One record is not taken.

    Attributes:
        reason: a key of `REASONS`.
        detail: for whoever reads the list, in a few words.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        assert reason in REASONS, reason
        self.reason, self.detail = reason, " ".join(detail.split())[:200]
