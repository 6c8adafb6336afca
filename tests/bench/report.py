"""What the rounds have shown, as text: medians, and ratios to the first peer in the same round."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from tests.bench.measurements import ALL, COSTS, Figures

Results = dict[str, dict[str, list[Figures]]]
"""By measurement and subject, the figures of each round."""


def shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def cell(rounds: list[Figures], name: str) -> str:
    """The median, with the smallest and the largest where they differ."""
    values = [figures.get(name) for figures in rounds]
    known = [value for value in values if value is not None]
    words = shown(median(values))
    if len(known) > 1 and shown(min(known)) != shown(max(known)):
        words += f" ({shown(min(known))} to {shown(max(known))})"
    return words


def ratio(rounds: list[Figures], others: list[Figures], name: str) -> str:
    """Of the same round each, because the machine may have changed in between."""
    ratios: list[float | None] = []
    for figures, other in zip(rounds, others, strict=False):
        mine, theirs = figures.get(name), other.get(name)
        if mine is not None and theirs:
            ratios.append(mine / theirs)
    return shown(median(ratios))


def against(subjects: list[str], preferred: str) -> str:
    """Whom the others are compared with: Go where it is there, else the first."""
    return preferred if preferred in subjects else subjects[0]


def tables(results: Results, preferred: str, scale: float) -> Iterator[str]:
    for key, by_subject in results.items():
        by_subject = {name: rounds for name, rounds in by_subject.items() if any(rounds)}
        if not by_subject:
            continue
        measurement = ALL[key]
        yield f"### {measurement.title.format(f'{max(2, round(measurement.number * scale)):,}')}"
        yield ""
        base = against(list(by_subject), preferred)
        columns = list(next(filter(None, next(iter(by_subject.values())))))
        head = [""]
        for column in columns:
            head += [column, f"÷ {base}"] if column in COSTS and len(by_subject) > 1 else [column]
        yield f"| {' | '.join(head)} |"
        yield "|" + "---|" * len(head)
        for name, rounds in by_subject.items():
            cells = [name]
            for column in columns:
                cells.append(cell(rounds, column))
                if column in COSTS and len(by_subject) > 1:
                    cells.append(ratio(rounds, by_subject[base], column))
            yield f"| {' | '.join(cells)} |"
        yield ""


def empty() -> Results:
    return defaultdict(lambda: defaultdict(list))
