"""Parquet files as tables of texts, so that they go the way that CSV files go."""

from pathlib import Path
from typing import Any

import numpy as np

from ._errors import RecipeError

MAGIC = b"PAR1"
KINDS = "numbers, truth values, texts, dates or times"


MOST_BYTES = 2**28  # unpacked: eight bytes for each of the values that a table may have


def read_parquet(path: Path, most: int, key: str) -> tuple[list[str], np.ndarray]:
    """The names of the columns, and their values as texts: empty where there is none.

    Numbers are written so that they are read as the same numbers; `most` is the largest number of values. Texts that
    repeat stay packed until it is known how long they are in all.

    **Raises:** `RecipeError` without pyarrow, for a file that cannot be read, one that is too large, or columns of
    other kinds: lists, structures, bytes.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise RecipeError(
            f"must be a CSV file where pyarrow is not installed (pip install 'hyprax[parquet]'); {path} is Parquet",
            key=key,
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            rows, schema, about = file.metadata.num_rows, file.schema_arrow, file.metadata
            groups = (about.row_group(i) for i in range(about.num_row_groups))
            size = sum(group.column(j).total_uncompressed_size for group in groups for j in range(about.num_columns))
            if size > MOST_BYTES:
                raise RecipeError(f"must have at most {MOST_BYTES} bytes unpacked; {path} has {size}", key=key)
            if rows * len(schema) > most:
                raise RecipeError(f"must have at most {most} fields; {path} has {rows * len(schema)}", key=key)
            if rows == 0 or len(schema) == 0:
                raise RecipeError(f"must have rows and columns; {path} has {rows} and {len(schema)}", key=key)
            other = [f"{field.name!r} is {field.type}" for field in schema if not _plain(arrow.types, field.type)]
            if other:
                raise RecipeError(f"must hold {KINDS}; in {path} {', '.join(other[:3])}", key=key)
        texts = [field.name for field in schema if arrow.types.is_string(field.type)]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            table = file.read()
        if (size := sum(_text_size(arrow, column) for column in table.columns)) > MOST_BYTES:
            raise RecipeError(f"must have at most {MOST_BYTES} characters of text; {path} has {size}", key=key)
    except RecipeError:
        raise
    except (OSError, arrow.ArrowException) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RecipeError(f"must be a Parquet file; {path} cannot be read ({said})", key=key) from None
    cells = np.empty((rows, len(schema)), object)
    for j, column in enumerate(table.columns):
        cells[:, j] = [_text(value) for value in column.to_pylist()]
    return [name.strip() for name in schema.names], cells


def _text_size(arrow: Any, column: Any) -> int:
    """The characters of the texts of a packed column, each as often as it stands there."""
    if not arrow.types.is_dictionary(column.type):
        return 0
    total = 0
    for chunk in column.chunks:
        lengths = np.asarray([len(str(text)) for text in chunk.dictionary.to_pylist()], np.int64)
        total += int(lengths[chunk.indices.drop_null().to_numpy()].sum())
    return total


def _plain(types: Any, kind: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    checks = ("boolean", "integer", "floating", "decimal", "date", "timestamp", "string", "large_string", "null")
    return any(getattr(types, f"is_{name}")(kind) for name in checks)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
