"""Attention as it is: in a list such as gla,gla,gla,attention every fourth layer is kept."""

from typing import Any

from jaxseq.errors import UserError
from jaxseq.mixers.attention import Attention


def fields(mixer: Attention, argument: str) -> dict[str, Any]:
    if argument:
        raise UserError(f"attention takes no argument; write attention, not attention:{argument}")
    return {}


def arrays(mixer: Attention, own: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return own


def dropped(mixer: Attention) -> list[str]:
    return []
