"""Sliding-window attention: window:128 sees the last 128 tokens. All weights are taken over; the state stops growing."""

from typing import Any

from jaxseq.errors import UserError
from jaxseq.mixers.attention import Attention

MIXER = "attention"


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    if not argument.isascii() or not argument.isdecimal() or not 0 < int(argument) < 10**7:
        raise UserError(f"window:{argument} needs a number of tokens; write it like window:128")
    return {"window": int(argument)}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return own


def dropped(mixer: Attention) -> list[str]:
    return []
