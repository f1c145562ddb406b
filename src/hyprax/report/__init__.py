"""Reports: one self-contained HTML page from the record of a run."""

from ._page import write as write
