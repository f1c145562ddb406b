"""Callbacks for `tune`: rules that stop a run, and loggers that write its steps where people look."""

from ._budgets import EarlyStopping as EarlyStopping, TimeBudget as TimeBudget, WorkBudget as WorkBudget
from ._files import CSV as CSV, JSONL as JSONL
from ._mlflow import MLflow as MLflow
from ._tensorboard import TensorBoard as TensorBoard
from ._wandb import WandB as WandB
