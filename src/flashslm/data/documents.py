"""What identifies a document, and which split it belongs to."""

import hashlib
import unicodedata

from flashslm.config import DataConfig

SPLITS = ("train", "validation", "test")
HELD_OUT = SPLITS[1:]
DIGEST_BYTES = 16  # of a document's digest that are kept


def document_digest(text: str) -> bytes:
    """Identity of a document: sha256 of its text in NFC with runs of white space as one blank."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode()).digest()


def split_of(digest: bytes, config: DataConfig) -> str:
    """The split that a document belongs to."""
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.validation_fraction:
        return "validation"
    return "test" if place < config.validation_fraction + config.test_fraction else "train"
