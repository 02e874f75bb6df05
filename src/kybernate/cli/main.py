"""The table of commands, and how any error becomes one line and an exit status.

Exit status: 0 done, 2 senseless input (unknown command, name, option; nothing was changed), else the error's own number
(model/errors.py). Errors go to standard error as `kybernate: WHAT FAILED (WHAT TO DO)`, with --json as one JSON object.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import kybernate
from kybernate.cli.fitting import plain
from kybernate.cli.foreign import hint_for
from kybernate.model.errors import KybernateError

if TYPE_CHECKING:  # 0.3 s that --help and a wrong command needn't pay
    from cyclopts import App

COMMANDS = (
    ("up", "cli.commands.agent:up", "Start the agent of this node."),
    ("down", "cli.commands.agent:down", "End the agent; workloads run on."),
    ("run", "cli.commands.run:run", "Start a workload: run NAME [options] -- COMMAND ..."),
    ("ps", "cli.commands.looking:ps", "List the workloads."),
    ("pause", "cli.commands.switching:pause", "Free the VRAM of workloads and keep their exact state."),
    ("resume", "cli.commands.switching:resume", "Continue paused workloads where they stopped."),
    ("prefetch", "cli.commands.storing:prefetch", "Read stored workloads into RAM, ahead of their resume."),
    ("move", "cli.commands.storing:move", "Move paused workloads or images to another tier."),
    ("snapshot", "cli.commands.storing:snapshot", "Take an image of a running workload: snapshot NAME --as IMAGE"),
    ("snapshots", "cli.commands.storing:snapshots", "List what is stored: images, and workloads below RAM."),
    ("clone", "cli.commands.storing:clone", "Start new workloads from an image: clone IMAGE NEW [-n K]"),
    ("rm-snapshot", "cli.commands.storing:rm_snapshot", "Delete an image, or the stored state of a workload."),
    ("verify", "cli.commands.storing:verify", "Check all stored data against its hashes."),
    ("gc", "cli.commands.storing:gc", "Free the space of deleted snapshots on disk and in the bucket."),
    ("stop", "cli.commands.ending:stop", "End workloads."),
    ("rm", "cli.commands.ending:rm", "Remove ended workloads from the list, and delete their output."),
    ("logs", "cli.commands.looking:logs", "Show a workload's output."),
    ("events", "cli.commands.looking:events", "Show the log of events."),
    ("history", "cli.commands.history:history", "Show which workload held VRAM when, and what switches cost."),
    ("explain", "cli.commands.looking:explain", "Say why a workload is in its state, and what to do next."),
    ("models", "cli.commands.serving:models", "Show models and jobs: state, queues, costs of switches."),
    ("start", "cli.commands.serving:start", "Start a model or a job of kybernate.yaml now."),
    ("plan", "cli.commands.serving:plan", "Say which workloads the policy would pause for a model: plan [MODEL ...]"),
    (
        "simulate",
        "cli.commands.simulating:simulate",
        "Predict request waiting times for each scheduling policy.",
    ),
    ("reload", "cli.commands.serving:reload", "Read kybernate.yaml again; no request is lost."),
    ("top", "cli.commands.top:top", "Watch and control the workloads in the terminal."),
    ("dashboard", "cli.commands.browsing:dashboard", "Print the dashboard's address, with its token."),
    ("token", "cli.commands.browsing:token", "Print the token for the API over TCP."),
    ("doctor", "cli.commands.machine:doctor", "Check this machine: what works, what is missing, how to get it."),
    ("check", "cli.commands.machine:check", "Check a kybernate.yaml."),
    ("version", "cli.commands.machine:version", "Show the versions of command line and agent."),
    ("completion", "cli.commands.machine:completion", "Print the completion script for a shell."),
    ("demo", "demo.main:demo", "Run a demo: three model servers and a training job behind one address."),
)
_ARGUMENTS = {
    "run": "NAME [OPTIONS] -- COMMAND ...",
    "pause": "NAME ... [OPTIONS]",
    "resume": "NAME ... [OPTIONS]",
    "stop": "NAME ... [OPTIONS]",
    "rm": "NAME ... [OPTIONS]",
    "prefetch": "NAME ... [OPTIONS]",
    "snapshot": "NAME --as IMAGE [OPTIONS]",
    "clone": "IMAGE NEW [OPTIONS]",
    "move": "NAME ... --tier TIER [OPTIONS]",
    "verify": "[NAME ...] [OPTIONS]",
    "events": "[NAME] [OPTIONS]",
    "history": "[NAME] [OPTIONS]",
    "plan": "[MODEL ...] [OPTIONS]",
    "check": "FILE [OPTIONS]",
    "completion": "[SHELL] [OPTIONS]",
}
"""Where the parser's own usage would say `[ARGS]`."""
_BENCHES = (("pause", "benchmarks.main:pause", "Measure pause and resume beside the driver's own checkpoint."),)
_BENCH_HELP = "Run a benchmark; writes bench/results/."
_COMPLETE = "__complete"
"""What the completion scripts of cyclopts ask."""
_SIMULATED_DEFAULT = "8GiB"
_NUMBER = re.compile(r"-\.?\d.*")
_SIZE = re.compile(r"\d.*")
_TRACEBACK = "KYBERNATE_TRACEBACK"
_MARKUP = re.compile(r"\s+")


def application() -> App:
    """The whole command line. Imports no command: the help of each is its docstring, `COMMANDS` has the short one."""
    from cyclopts import App, Parameter

    from kybernate.cli.common import default_shown

    app = App(
        name="kybernate",
        help="Pause and resume unmodified CUDA processes: VRAM is a cache for active workloads.",
        version=kybernate.__version__,
        help_format="plaintext",
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
        default_parameter=Parameter(show_default=default_shown),
    )
    for name, place, _ in COMMANDS:
        app.command(f"kybernate.{place}", name=name, usage=_usage(name))
    bench = App(name="bench", help=_BENCH_HELP)
    for name, place, text in _BENCHES:
        bench.command(f"kybernate.{place}", name=name, help=text)
    app.command(bench)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    tokens = _with_default_size(list(sys.argv[1:] if arguments is None else arguments))
    if tokens[:1] == ["help"]:
        tokens = [*tokens[1:], "--help"]
    if not tokens or tokens[0] in ("-h", "--help"):
        print(_help())
        return 0
    if tokens[0] == "--version":
        print(kybernate.__version__)
        return 0
    if tokens[0] != _COMPLETE and tokens[0] not in (known := [*(name for name, _, _ in COMMANDS), "bench"]):
        return _complain(tokens, "bad_input", f"no such command: {tokens[0][:80]}", hint_for(tokens[0], known), 2)
    if (refused := _misses_its_name(tokens) or _option_behind_name(tokens)) is not None:
        return _complain(tokens, "bad_input", refused, _how(tokens), 2)
    from cyclopts import CycloptsError, UnusedCliTokensError

    try:
        result = application()(tokens)
        sys.stdout.flush()
    except UnusedCliTokensError as e:
        words = ", ".join(repr(token) for token in e.unused_tokens or ())
        return _complain(tokens, "bad_input", f"{tokens[0]} takes no more: {words}", _how(tokens), 2)
    except CycloptsError as e:
        return _complain(tokens, "bad_input", _one_line(str(e)), _how(tokens), 2)
    except KybernateError as e:
        return _complain(tokens, e.code, e.message, e.hint, e.exit_status)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as e:
        if os.environ.get(_TRACEBACK):
            raise
        where = f" at {e.filename}" if isinstance(e, OSError) and e.filename else ""
        words = (e.strerror or str(e)) if isinstance(e, OSError) else f"{type(e).__name__}: {e}"
        hint = f"set {_TRACEBACK}=1 to see where"
        return _complain(tokens, "failed", f"{tokens[0]} failed{where}: {_one_line(words)}", hint, 1)
    return result if isinstance(result, int) else 0


def _usage(name: str) -> str | None:
    return f"Usage: kybernate {name} {_ARGUMENTS[name]}" if name in _ARGUMENTS else None


def _help() -> str:
    lines = [
        "Usage: kybernate COMMAND [OPTIONS]",
        "",
        "Pause and resume unmodified CUDA processes: VRAM is a cache for active workloads.",
        "",
        *(f"  {name:<12}{text}" for name, _, text in COMMANDS),
        f"  {'bench':<12}{_BENCH_HELP}",
        "",
        "Tiers: a paused workload lies in `ram`, or below RAM: in `nvme` (a disk) or `object` (a bucket). Below RAM",
        "it has no processes, its state survives a reboot, and a resume takes seconds to minutes instead of one second.",
        "",
        "Every command has --help and --json. `kybernate COMMAND --help` shows its options.",
    ]
    return "\n".join(lines)


def _complain(tokens: Sequence[str], code: str, message: str, hint: str | None, status: int) -> int:
    own = tokens[: tokens.index("--")] if "--" in tokens else tokens
    if "--json" in own:
        import json

        print(json.dumps({"code": code, "message": message, "hint": hint}), file=sys.stderr)
    else:
        text = message + (f" ({hint})" if hint else "")
        print("\n".join(f"kybernate: {plain(line)}" for line in text.split("\n")), file=sys.stderr)
    return status


def _how(tokens: Sequence[str]) -> str:
    if tokens[:2] == ["run", "--"]:
        return "kybernate run NAME -- PROGRAM ..."
    if tokens[0] == "run" and "--" not in tokens:
        return "what belongs to the program goes behind `--`: kybernate run NAME -- PROGRAM ..."
    return f"`kybernate {tokens[0]} --help` shows how"


def _misses_its_name(tokens: Sequence[str]) -> str | None:
    """`run -- PROGRAM`: the parser takes the program for the name."""
    return "run takes a name in front of the `--`" if tokens[:2] == ["run", "--"] else None


def _option_behind_name(tokens: Sequence[str]) -> str | None:
    """`run NAME -5 PROGRAM`: the parser takes a number for a word, where it would be the program."""
    if tokens[0] != "run":
        return None
    own = tokens[: tokens.index("--")] if "--" in tokens else tokens
    number = next((word for word in own if _NUMBER.fullmatch(word)), None)
    return None if number is None else f"Unknown option: {number}"


def _one_line(text: str) -> str:
    return _MARKUP.sub(" ", text).strip().rstrip(".")


def _with_default_size(tokens: list[str]) -> list[str]:
    """`--simulated` may stand alone; options with an optional value are not the parser's strength."""
    if tokens[:1] not in (["up"], ["bench"]):
        return tokens
    end = tokens.index("--") if "--" in tokens else len(tokens)
    for i in range(end):
        if tokens[i] == "--simulated" and not (i + 1 < end and _SIZE.fullmatch(tokens[i + 1])):
            tokens[i] = f"--simulated={_SIMULATED_DEFAULT}"
    return tokens
