"""Processes in which jaxseq is already imported: they cost a few percent of a new Python. A server that has imported
everything, but started no device, forks one child for each program. A child is a separate process that can be killed at any
moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxseq.config import to_dict

SERVER = """
import json, os, sys, traceback
import jax, grain, numpy, orbax.checkpoint, tensorboardX, jaxseq.train, jaxseq.data.packing, jaxseq.evaluation
from jaxseq.train.objectives import next_token

for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        _, status = os.waitpid(asked["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={asked['devices']} --xla_backend_optimization_level=0"
    status = 1
    try:
        if asked["world"]:
            address, count, index = asked["world"]
            jax.distributed.initialize(address, count, index)
        exec(asked["code"], {"config": jaxseq.config_module.from_dict(asked["config"]), "args": asked["args"]})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
""".replace("jaxseq.config_module", "sys.modules['jaxseq.config']")


class Forks:
    """The server; use as a context manager. cache: a folder for compiled programs, shared by all children."""

    def __init__(self, cache: Path):
        self.cache = cache

    def __enter__(self) -> "Forks":
        more = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        more |= {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=os.environ | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exception) -> None:
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()

    def ask(self, **what) -> int:
        self.server.stdin.write(json.dumps(what) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, code: str, config, log: Path, *args, devices: int = 1, world: tuple | None = None) -> "Child":
        """Runs `code` with the globals `config` and `args`. world: (address, count, index) of several processes."""
        what = {"code": code, "config": to_dict(config), "args": args, "log": str(log), "devices": devices, "world": world}
        return Child(self, self.ask(**what), log)


class Child:
    """A forked process. log: the file with its output."""

    def __init__(self, forks: Forks, pid: int, log: Path):
        self.forks, self.pid, self.log, self.seen = forks, pid, log, 0

    def ended(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def until(self, text: str, seconds: float = 300) -> bool:
        """Waits until it prints `text`; returns whether it did before it ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            over = self.ended()
            if self.log.exists() and text in self.log.read_text(errors="replace"):
                return True
            if over:
                return False
            time.sleep(0.005)
        raise TimeoutError(f"no {text!r} in {self.log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        return self.forks.ask(wait=self.pid)

    def finish(self) -> str:
        """The output of a process that must succeed."""
        status = self.wait()
        said = self.log.read_text(errors="replace")
        assert status == 0, said[-3000:]
        return said
