"""Other libraries that compute the same models, one file each, used if they are installed.

    PACKAGES                       {module: name on PyPI}; the peer is available if all modules can be imported
    open(model, params)            the peer's model with our weights; raises UserError if the library has no such model
    .logits(tokens_BT)             numpy [B, T, V], to check that both compute the same
    .training(rows, length)        a call that runs one training step on random tokens: gradients, clipping, AdamW
    .reading(length)               a call that prefills a prompt and computes the logits of the next token
    .generating(length, steps)     a call that prefills `length` tokens and decodes `steps` tokens greedily
"""

import importlib.metadata
import importlib.util
from types import ModuleType

from jaxseq import registry


def available() -> dict[str, ModuleType]:
    """{name and versions: module} of the peers whose packages are installed."""
    found = {}
    for name in registry.names("bench.peers"):
        peer = registry.load("bench.peers", name)
        if all(importlib.util.find_spec(package) for package in peer.PACKAGES):
            versions = {package: importlib.metadata.version(package) for package in peer.PACKAGES.values()}
            found[", ".join(f"{package} {version}" for package, version in versions.items())] = peer
    return found
