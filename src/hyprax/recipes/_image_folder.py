"""Folders of images, one for each class, as rows of grey values."""

from pathlib import Path
from typing import Any

import numpy as np

from ._errors import RecipeError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MOST_PIXELS = 2**24
"""An image of more is refused before it is unpacked."""


def read_image_folder(
    path: Path, size: tuple[int, int] | None, most: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Images as grey values from 0 to 255, (rows, height * width), the name of the folder of each, and their shape.

    Files are taken in the order of their names; other files and empty folders are passed over.

    **Raises:** `RecipeError` for fewer than two folders with images, images that cannot be read or differ in size where
    none is asked for, and more than `most` values.
    """
    from PIL import Image

    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [(folder.name, file) for folder in folders for file in sorted(folder.iterdir()) if _is_image(file)]
    classes = {name for name, _ in found}
    if len(classes) < 2:
        raise RecipeError(
            f"must hold a folder of images for each class, two or more; {path} has {len(classes)} with images "
            f"({', '.join(SUFFIXES)})",
            key="data.path",
        )
    rows: list[np.ndarray] = []
    shape = size
    for _, file in found:
        try:
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise RecipeError(
                        f"must hold images of at most {MOST_PIXELS} pixels; {file} has {width} x {height}",
                        key="data.path",
                    )
                grey: Any = image.convert("L")
                if size is not None:
                    grey = grey.resize((size[1], size[0]))
                pixels = np.asarray(grey, np.uint8)
        except RecipeError:
            raise
        except Exception as error:  # of many types, by the format and by what is wrong
            said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise RecipeError(f"must hold images; {file} cannot be read ({said})", key="data.path") from None
        shape = pixels.shape if shape is None else shape
        if pixels.shape != shape:
            raise RecipeError(
                f"must be [height, width] for images of different sizes; {found[0][1]} is {list(shape)}, {file} "
                f"{list(pixels.shape)}",
                key="data.size",
            )
        if not rows and len(found) * pixels.size > most:
            raise RecipeError(f"must hold at most {most} values; {path} has {len(found)} images", key="data.path")
        rows.append(pixels.ravel())
    assert shape is not None  # there are images
    return np.stack(rows).astype(np.float64), np.asarray([name for name, _ in found]), (shape[0], shape[1])


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
