"""Texts that come from anybody's files, made fit for a terminal."""

import re


def escaped(text: str) -> str:
    """The text without what a terminal would obey: control characters but tabs and ends of lines, as `\\x1b`."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
