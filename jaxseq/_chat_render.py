"""Renders one chat template in a separate process, because a template is a program and comes with downloaded weights.

It prints "ready", reads {"template", "variables"} as JSON from stdin and writes {"text"} or {"error"} to stdout.
Before it reads, it limits its own time, memory, files and processes. `jaxseq.chat` starts it.
"""

import datetime
import json
import signal
import sys
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, BYTES = 2, 256 << 20  # of processor time; of memory


class Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the model writes, for training; it is rendered as its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller):
        return caller()


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    made.filters["tojson"] = tojson
    made.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return made


def limit() -> None:
    """Sets the limits that the system has. The timer ends this process; it starts now, after Python's own start-up."""
    try:
        import resource
    except ImportError:
        return
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    wanted = {"RLIMIT_AS": BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, value in wanted.items():
        if hasattr(resource, name):
            hard = resource.getrlimit(getattr(resource, name))[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, name), (value, value))


def main() -> None:
    made = environment()
    made.from_string("{{ '' | tojson }}").render()  # jinja2's late imports, before the limits
    print("ready", flush=True)
    limit()
    given = json.load(sys.stdin)
    try:
        text = made.from_string(given["template"]).render(**given["variables"])
        text.encode()  # fails for half of a surrogate pair
        answer = {"text": text}
    except MemoryError:
        answer = {"error": f"it takes more than {BYTES >> 20} MB"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:  # a template may raise anything
        answer = {"error": f"{type(error).__name__}: {error}" if not isinstance(error, jinja2.TemplateError) else str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
