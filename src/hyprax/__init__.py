"""Hyprax: hyperparameters tuned by gradient, with a certificate on every answer.

The public names stand in `__init__.pyi` and are imported where they are first used: JAX takes most of a second, and
`hyprax --help` needs none of it.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
