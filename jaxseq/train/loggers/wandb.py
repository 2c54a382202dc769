"""Weights & Biases. A resumed workdir continues the same run there. wandb's environment variables (WANDB_MODE) apply."""

import hashlib
import importlib
from pathlib import Path
from typing import Any

from jaxseq import paths
from jaxseq.errors import UserError


def check() -> None:
    try:
        importlib.import_module("wandb")
    except ImportError:
        raise UserError("train.logger=wandb needs the package wandb; pip install 'jaxseq[wandb]', or leave it empty") from None


def start(workdir: Path, config: dict[str, Any]) -> "WandbLogger":
    return WandbLogger(workdir, config)


class WandbLogger:
    def __init__(self, workdir: Path, config: dict[str, Any]):
        wandb = importlib.import_module("wandb")
        identity = hashlib.blake2b(str(paths.absolute(workdir)).encode(), digest_size=8).hexdigest()
        folder = None if paths.is_remote(workdir) else str(workdir)
        try:
            self.run = wandb.init(
                project="jaxseq", name=workdir.name, id=identity, resume="allow", dir=folder, config=config,
                settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except Exception as error:  # of wandb, of its HTTP library, or of the check of its environment variables
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise UserError(f"wandb cannot start: {reason}; run `wandb login`, or set WANDB_MODE=offline") from error

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        self.run.log(scalars, step=step)

    def close(self) -> None:
        self.run.finish()
