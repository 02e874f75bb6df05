"""`make soak`: rounds of random orders and faults for as long as is asked, each from a seed that is printed.

    python -m tests.soak --seconds 1800              rounds with seeds of the clock's choice
    python -m tests.soak --seed 7 --rounds 1         that round again
    python -m tests.soak --seed 7 --only 0,3,8       with these steps of it alone
    python -m tests.soak --seed 7 --shrink           leave out steps for as long as it goes wrong without them

Moments are part of the plan, but a machine isn't as punctual: a rare finding may need its seed some times over.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.guardian import guarded
from tests.soak.plan import Step, plan
from tests.soak.walk import Walk, Wrong
from tests.soak.world import World
from tests.store.server import Server, Unbuildable

STEPS = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when nothing went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long; the last round is finished")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first round; the next have the next ones"
    )
    parser.add_argument("--rounds", type=int, default=0, help="so many, however long they take")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a round")
    parser.add_argument("--only", default="", help="numbers of the steps to do, with commas between")
    parser.add_argument("--shrink", action="store_true", help="look for fewer steps of --seed that go wrong")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # everything below is left in an orderly way
    with tempfile.TemporaryDirectory(prefix="kyb-soak-") as directory:
        try:
            place = Path(directory) / "s3"
            place.mkdir()
            server = Server(place)
        except Unbuildable as e:
            print(e)
            return 1
        try:
            return _shrink(options, server) if options.shrink else _soak(options, server)
        finally:
            server.close()


def _soak(options: argparse.Namespace, server: Server) -> int:
    began, seed, failures = time.monotonic(), options.seed, 0
    done = 0
    while done < options.rounds if options.rounds else time.monotonic() - began < options.seconds:
        steps = _selected(options, seed)
        print(f"seed {seed}: {len(steps)} steps, {time.monotonic() - began:.0f} s so far", flush=True)
        if (error := round_(steps, server, say=_say)) is not None:
            failures += 1
            print(f"seed {seed} WENT WRONG: {error}", flush=True)
        done, seed = done + 1, seed + 1
    print(f"{done} rounds in {time.monotonic() - began:.0f} s, {failures} went wrong")
    return 1 if failures else 0


def round_(steps: Sequence[Step], server: Server, *, say: Callable[[str], None]) -> str | None:
    """Returns what went wrong."""
    root = Path(tempfile.mkdtemp(prefix="kyb-"))
    with guarded(root), World(root, server) as world:
        walk = Walk(world, say=say)
        try:
            for step in steps:
                say(str(step))
                walk.play(step)
            say("settle")
            walk.settle()
        except Wrong as e:
            tails = "".join(
                f"\n-- agent {'ab'[k]} --\n{agent.log.read_text()[-12000:]}" for k, agent in enumerate(world.agents)
            )
            return f"{e}{tails}"
        except Exception:
            return traceback.format_exc()
    return None


def _shrink(options: argparse.Namespace, server: Server) -> int:
    """Halves, quarters ... and single steps are left out for as long as what is left goes wrong."""
    steps = _selected(options, options.seed)
    if round_(steps, server, say=_say) is None:
        print("nothing goes wrong this time")
        return 0
    size = len(steps) // 2
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size :]
            if fewer and round_(fewer, server, say=lambda _: None) is not None:
                steps = fewer
                print(f"{len(steps)} steps: --only {','.join(str(step.number) for step in steps)}", flush=True)
            else:
                start += size
        size //= 2
    print("\n".join(map(str, steps)))
    return 1


def _selected(options: argparse.Namespace, seed: int) -> list[Step]:
    steps = plan(seed, steps=options.steps)
    if not options.only:
        return steps
    wanted = {int(number) for number in options.only.split(",")}
    return [step for step in steps if step.number in wanted]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
