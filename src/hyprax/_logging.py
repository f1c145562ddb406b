"""The logger of the library, under the name `hyprax`: silent until a program asks Python's `logging` for more."""

import logging

logger = logging.getLogger("hyprax")
logger.addHandler(logging.NullHandler())
