"""Eq. 1 of Kimi Team 2025 (Kimi Delta Attention), the state transposed: [value, key]; log_w is one number a key channel.

The loop of the gated delta rule computes it: its log_w broadcasts over the key's channels.
"""

from oracles.gated_delta_rule import loop

__all__ = ["loop"]
