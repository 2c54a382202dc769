"""Evaluation of trained models."""

from jaxseq.evaluation.bits_per_byte import evaluate

__all__ = ["evaluate"]
