"""The rounds, and what is made of them."""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flaskchat.bench.machine import Machine, this_machine
from flaskchat.bench.processes import CannotMeasure, place, stand_in
from tests.bench import measurements, report, subjects

GO = subjects.Go.name
HOW = """\
Medians of the rounds, in brackets the smallest and the largest. Ratios (÷) are taken within a round, because the
machine is not the same in the next one; they say more than the figures. Each is one process: one thread of Python or
JavaScript, one processor for Go. flaskchat keeps what it relays (in SQLite, or where its name says, on this machine as
well; committed before it is sent); the others keep nothing. CPU is that of the one process; that of database servers is
in a column of its own, in µs per token as well. The delay is from the model's sending to the client's receiving."""


def say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr, flush=True)


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="What flaskchat costs beside other relays.")
    names = ", ".join(measurements.ALL)
    parser.add_argument("measurements", nargs="*", metavar="measurement", help=f"absent: all but `most`; of: {names}")
    parser.add_argument("--only", action="append", metavar="SUBJECT", help="its name, or a part of several")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="counted each time")
    parser.add_argument("--scale", type=float, default=1, help="of all numbers of replies and readers, to try it out")
    parser.add_argument("--output", type=Path, help="write the text there as well, such as tests/bench/results.md")
    given = parser.parse_args(arguments)
    unknown = set(given.measurements) - set(measurements.ALL)
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}; there are {names}")
    return given


def available(only: list[str] | None) -> tuple[list[subjects.Subject], list[str]]:
    """Those that can run here, and what to say of the others."""
    found, left_out = [], []
    names = {subject.name.lower() for subject in subjects.ALL}
    parts = [part.lower() for part in only or ()]
    for subject in subjects.ALL:
        name = subject.name.lower()
        if parts and not any(name == part if part in names else part in name for part in parts):
            continue
        try:
            subject.prepare()
        except subjects.Missing as why:
            left_out.append(f"{subject.name} was left out: {why}")
            say(left_out[-1])
        else:
            found.append(subject)
    return found, left_out


def head(given: argparse.Namespace, machine: Machine, found: list[subjects.Subject], notes: list[str]) -> list[str]:
    command = shlex.join(["tests/bench/run", *sys.argv[1:]])
    versions = ", ".join(f"{subject.name} ({subject.version})" for subject in found if subject.version)
    taken = (
        f"Taken on {datetime.datetime.now(datetime.UTC):%d %B %Y} with `{command}` on {processor()}, load average "
        f"{machine.load:.1f} before. {machine}. Beside it: {versions or 'nothing'}."
    )
    return ["# What a live reply costs", "", *(line for words in (taken, HOW, *notes) for line in (words, ""))]


def processor() -> str:
    """What it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def rounds(given: argparse.Namespace, found: list[subjects.Subject], results: report.Results) -> Iterator[list[str]]:
    """:returns: after each measurement, what has gone wrong until then."""
    wrong: list[str] = []
    names = given.measurements or [name for name, each in measurements.ALL.items() if not each.slow]
    with place() as (folder, stack):
        model, url = stack.enter_context(stand_in(folder))
        bench = measurements.Bench(folder, model, url, given.seconds, given.scale)
        for name in names:
            measurement = measurements.ALL[name]
            taking_part = [subject for subject in found if measurement.concerns(subject)]
            for number in range(given.rounds):
                for subject in taking_part:
                    say(f"{name}, round {number + 1} of {given.rounds}: {subject.name}")
                    began = time.monotonic()
                    try:
                        results[name][subject.name].append(measurement.measure(bench, subject))
                    except (RuntimeError, CannotMeasure) as error:
                        wrong.append(f"{name}, {subject.name}: {error}")
                        results[name][subject.name].append({})
                        say(wrong[-1])
                    model.ask("finish")
                    say(f"  {time.monotonic() - began:.0f} s")
            yield wrong


def main(arguments: list[str]) -> None:
    given = options(arguments)
    machine = this_machine()
    found, left_out = available(given.only)
    if not found:
        raise SystemExit("tests/bench/run: nothing of that can run here")
    if machine.busy:
        say(f"something else is computing: load average {machine.load:.1f} on {machine.cores} cores")
    results = report.empty()
    text, wrong = "", list[str]()
    for wrong in rounds(given, found, results):
        text = "\n".join([*head(given, machine, found, left_out + wrong), *report.tables(results, GO, given.scale)])
        if given.output is not None:  # each time: all of them take an hour, and may be ended before
            given.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    if wrong:
        raise SystemExit(f"tests/bench/run: {len(wrong)} measurements failed")
