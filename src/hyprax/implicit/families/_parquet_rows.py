"""Columns of a Parquet file as rows, one row group in memory at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class ParquetRows:
    """`rows[start:stop]` of the columns of a Parquet file; the group that was read last is kept."""

    def __init__(self, path: str | Path, columns: Sequence[str] | None):
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise ImportError("Chunked.parquet needs pyarrow: pip install 'hyprax[parquet]'.") from None
        self.path, self.file = Path(path), parquet.ParquetFile(path)
        schema = self.file.schema_arrow
        self.columns = list(schema.names) if columns is None else list(columns)
        if missing := sorted(set(self.columns) - set(schema.names)):
            raise ValueError(f"Chunked.parquet: columns must be of {schema.names}; got {missing[0]!r}.")
        if not self.columns or self.file.metadata.num_rows == 0:
            raise ValueError(
                f"Chunked.parquet: {path} must hold at least one row and one column; got {self.file.metadata.num_rows} "
                f"rows of {len(self.columns)}."
            )
        kinds = [schema.field(name).type for name in self.columns]
        for name, kind in zip(self.columns, kinds, strict=True):
            if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)):
                raise ValueError(f"Chunked.parquet: column {name!r} of {path} must hold numbers; got {kind}.")
        self.dtype = np.result_type(*(kind.to_pandas_dtype() for kind in kinds))
        about = self.file.metadata
        counts = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
        self.starts = np.cumsum([0, *counts])
        self.shape = (about.num_rows, len(self.columns))
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def largest(self) -> int:
        """Rows of the largest group."""
        return int(np.max(np.diff(self.starts)))

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        first, last = np.searchsorted(self.starts, (start, stop - 1), side="right") - 1
        parts = [
            self._group(int(g))[max(start - self.starts[g], 0) : stop - self.starts[g]] for g in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _group(self, g: int) -> np.ndarray:
        if self._last is None or self._last[0] != g:
            self._last = None  # before the next one, not beside it
            table: Any = self.file.read_row_group(g, columns=self.columns)
            for name in self.columns:
                if empty := table.column(name).null_count:
                    raise ValueError(
                        f"Chunked.parquet: column {name!r} of {self.path} must have no empty cells; got {empty} in row "
                        f"group {g}. Fill or drop them."
                    )
            block = np.empty((table.num_rows, self.shape[1]), self.dtype)
            for j, name in enumerate(self.columns):
                block[:, j] = table.column(name).to_numpy()
            self._last = g, block
        return self._last[1]
