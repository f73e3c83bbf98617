"""Runs the targets in turn, each input from its own seed, and gathers what broke."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.fuzz.targets import LinkTarget, all_targets
from vinecore.wire import messages

# Inputs between two looks at the loop's timers.
TURN = 500
# A target that breaks always would otherwise fill the screen.
MOST_FAILURES = 20


@dataclass
class Outcome:
    """What came of a run."""

    inputs: int = 0
    seconds: float = 0.0
    peak_kb: int = 0
    grown_kb: int = 0
    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def peak_kb() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(inputs: int, seed: int = 0, only: str = "") -> Outcome:
    """Give the targets this many inputs in all; ``only`` names one target."""
    return asyncio.run(_run(inputs, seed, only))


async def _run(inputs: int, seed: int, only: str) -> Outcome:
    targets = {name: target for name, target in all_targets().items() if only in (name, "")}
    links = [target for target in targets.values() if isinstance(target, LinkTarget)]
    outcome = Outcome()
    original = messages.Decoder.__call__

    def call(decoder: messages.Decoder, data: bytes | memoryview) -> object:
        for link in links:
            link.asked.add(decoder._name)
        return original(decoder, data)

    if links:
        messages.Decoder.__call__ = call  # type: ignore[method-assign]
    names = list(targets)
    first_kb = peak_kb()
    began = time.monotonic()
    try:
        for number in range(inputs):
            name = names[number % len(names)]
            # A text as the seed: the same input on every machine, alone or in a run.
            rng = random.Random(f"{seed} {name} {number}")
            try:
                outcome.results[name, targets[name](rng)] += 1
            except Exception as error:
                outcome.failures.append(f"--seed {seed} --number {number} ({name}): {type(error).__name__}: {error}")
                if len(outcome.failures) >= MOST_FAILURES:
                    break
            outcome.inputs += 1
            if number % TURN == 0:
                await asyncio.sleep(0)
    finally:
        messages.Decoder.__call__ = original  # type: ignore[method-assign]
    outcome.seconds = time.monotonic() - began
    outcome.peak_kb = peak_kb()
    outcome.grown_kb = outcome.peak_kb - first_kb
    return outcome
