"""A report as a table and a plot, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .ramp import LIMIT, Report, Step

HEAD = (
    ("live", "replies"), ("tokens", "per second"), ("CPU of the", "workers"), ("CPU", "per token"),
    ("memory", "per reply"), ("delay", "p50"), ("delay", "p99"),
)  # fmt: skip
LABEL = 8


class Ink(NamedTuple):
    full: str
    half: str
    mark: str


BLOCKS = Ink("█", "░", "┊")
ASCII = Ink("#", "-", "|")


def ink(encoding: str | None) -> Ink:
    """What a terminal with this encoding can show."""
    try:
        "".join(BLOCKS).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def row(step: Step) -> tuple[str, ...]:
    return (
        number(step.started), number(step.tokens_per_second), "-" if step.cpu is None else f"{step.cpu:.0%}",
        number(step.cpu_us_per_token, " µs", 1), number(step.memory_kb_per_reply, " kB"),
        number(step.delay_ms_p50, " ms"), number(step.delay_ms_p99, " ms"),
    )  # fmt: skip


def table(steps: list[Step]) -> Iterator[str]:
    rows = [tuple(head[0] for head in HEAD), tuple(head[1] for head in HEAD), *map(row, steps)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def bars(title: str, rows: list[tuple[int, float, str]], width: int, ink: Ink) -> Iterator[str]:
    """:param rows: live replies, the value, and how it is written."""
    yield title
    most = max((value for _, value, _ in rows), default=0) or 1
    for replies, value, words in rows:
        yield f"{replies:>{LABEL},} {ink.full * max(1, round(value / most * width))} {words}"


def delays(steps: list[Step], width: int, ink: Ink) -> Iterator[str]:
    """p50 as the dark part of a bar, p99 as all of it, and the limit. What is longer than the line ends in `>`."""
    yield f"Delay from the model to the client: {ink.full} p50, {ink.half} p99, {ink.mark} {LIMIT:.0f} ms"
    limit = width * 3 // 4
    for step in steps:
        half, most = step.delay_ms_p50, step.delay_ms_p99
        if half is None or most is None:
            continue
        dark, light = (max(1, round(value / LIMIT * limit)) for value in (half, most))
        line = list((ink.full * dark + ink.half * (light - dark)).ljust(limit + 1))
        if line[limit] == " ":
            line[limit] = ink.mark
        if len(line) > width:
            line[width - 1 :] = ">"
        yield f"{step.replies:>{LABEL},} {''.join(line)} {most:,.0f} ms"


def plot(steps: list[Step], width: int, ink: Ink) -> Iterator[str]:
    space = max(20, width - LABEL - 12)
    cpu = [(s.replies, s.cpu_us_per_token, number(s.cpu_us_per_token, " µs", 1)) for s in steps if s.cpu_us_per_token]
    memory = [(s.replies, s.memory_kb_per_reply, number(s.memory_kb_per_reply, " kB")) for s in steps
              if s.memory_kb_per_reply and s.memory_kb_per_reply > 0]  # fmt: skip
    if cpu:
        yield from bars("CPU per token", cpu, space, ink)
        yield ""
    if memory:
        yield from bars("Memory per live reply", memory, space, ink)
        yield ""
    yield from delays(steps, space, ink)


def lines(report: Report, width: int, ink: Ink) -> Iterator[str]:
    """The whole report."""
    yield from table(report.steps)
    yield ""
    yield from plot(report.steps, width, ink)
    yield ""
    yield report.verdict
    yield from report.notes
    yield f"Machine: {report.machine}."
