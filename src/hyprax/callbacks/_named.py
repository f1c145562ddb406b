"""Loggers by name, beside the record of a run: what the command line asks for."""

from pathlib import Path
from typing import Any

from ._files import CSV, JSONL
from ._mlflow import MLflow
from ._tensorboard import TensorBoard
from ._wandb import WandB

NAMES = ("csv", "jsonl", "tensorboard", "mlflow", "wandb")


def named(name: str, folder: str | Path) -> Any:
    """The logger of this name, which writes into `folder`: log.csv, log.jsonl, tensorboard/, mlflow.db, wandb/.

    **Raises:** `ValueError` for another name; `ModuleNotFoundError` where its package is missing.
    """
    folder = Path(folder)
    if name == "csv":
        return CSV(folder / "log.csv")
    if name == "jsonl":
        return JSONL(folder / "log.jsonl")
    if name == "tensorboard":
        return TensorBoard(folder / "tensorboard")
    if name == "mlflow":
        return MLflow(f"sqlite:///{(folder / 'mlflow.db').absolute()}")
    if name == "wandb":
        return WandB(dir=str(folder), name=folder.name)
    raise ValueError(f"log must be one of {', '.join(NAMES)}; got {name!r}.")
