"""Training: one sharded loop for every model."""

from jaxseq.train.failures import BadStepError, NonFiniteError
from jaxseq.train.loop import planned, train
from jaxseq.train.step import prepare
from jaxseq.train.weights import load, load_variables, save_params

__all__ = ["BadStepError", "NonFiniteError", "load", "load_variables", "planned", "prepare", "save_params", "train"]
