"""Eq. 1 of Kimi Team 2025 (Kimi Delta Attention) with the state transposed, [value, key]; log_w is one number per key channel.
The loop of the gated delta rule computes it, because log_w broadcasts over the key channels."""

from oracles.gated_delta_rule import loop

__all__ = ["loop"]
