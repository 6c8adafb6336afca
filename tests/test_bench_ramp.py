"""Which steps `flask chat bench` takes, and what it says of them: table, plot and sentence, from figures of our own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from flaskchat.bench import machine, ramp, show


def asked(most: int, holds: int) -> list[int]:
    """The steps for a worker that holds so many."""
    sizes = ramp.sizes(most)
    steps = [next(sizes)]
    with contextlib.suppress(StopIteration):
        while True:
            steps.append(sizes.send(steps[-1] > holds))
    return steps


def test_steps_double_up_to_what_was_asked_for() -> None:
    assert asked(10, holds=1000) == [10]
    assert asked(300, holds=1000) == [50, 100, 200, 300]
    assert asked(400, holds=1000) == [50, 100, 200, 400]


def test_where_they_are_too_many_steps_go_halfway_back_until_both_ends_are_near() -> None:
    assert asked(10_000, holds=1350) == [50, 100, 200, 400, 800, 1600, 1200]
    assert asked(10_000, holds=810) == [50, 100, 200, 400, 800, 1600, 1200, 1000]
    assert asked(300, holds=250) == [50, 100, 200, 300, 250]
    assert asked(300, holds=10) == [50], "none that was held to go back to"
    for holds in range(50, 5000, 7):
        steps = asked(10_000, holds)
        most, least = max(s for s in steps if s <= holds), min(s for s in steps if s > holds)
        assert most < least <= 1.35 * most


# -- what it says ------------------------------------------------------------------------------------------------------


def step(replies: int, p99: float | None = 30.0, **more: Any) -> ramp.Step:
    values: dict[str, Any] = {
        "replies": replies, "started": replies, "errors": {}, "seconds": 5.0, "tokens_per_second": 20.0 * replies,
        "cpu_us_per_token": 25.0, "cpu": 0.95, "memory_kb_per_reply": 40.0, "delay_ms_p50": p99 and p99 / 2,
        "delay_ms_p99": p99, "first_event_ms_p50": 10.0, "model_cpu": 0.2, "model_lag_ms": 1.0, "client_cpu": 0.2,
    }  # fmt: skip
    return ramp.Step(**values | more)


def test_the_sentence_is_of_the_fewest_replies_that_were_too_many() -> None:
    steps = [step(800), step(1200), step(1400, 230), step(1600, 2000)]
    words = ramp.verdict(ramp.Options(), steps, 1200, "delay", 2)
    assert words.startswith("One worker holds 1,200 live replies at 20 tokens/s with a delay (p99) of 30 ms; at 1,400 ")


@pytest.mark.parametrize(
    ("last", "ended_by", "says"),
    [
        (step(100), "", "with a delay (p99) of 30 ms; no more were asked for."),
        (step(100, 350.4), "delay", "with a delay (p99) of 30 ms; at 100 it rises to 350 ms, over 200 ms."),
        (step(100, 350, cpu=0.5), "delay", "computed only 50% of the time then: something else on this machine"),
        (step(100, 350, cpu=0.7, model_cpu=0.7, client_cpu=0.5), "delay", "took the rest of the 2 cores"),
        (step(100, model_cpu=0.95), "model", "at 100 the stand-in model came to its own limit"),
        (step(100, 999, client_cpu=0.95), "client", "at 100 the client that counts came to its own limit"),
        (step(100, started=90, errors={"status 503": 10}), "refused", "not all could begin (status 503: 10)."),
        (step(100, None), "delay", "then none came"),
    ],
)  # fmt: skip
def test_the_sentence_says_what_came_to_its_limit(last: ramp.Step, ended_by: str, says: str) -> None:
    assert ramp.limit_of(last) == ended_by
    held = 50 if ended_by else 100
    words = ramp.verdict(ramp.Options(), [step(50), last], held, ended_by or "replies", 2)
    assert words.startswith(f"One worker holds {held} live replies at 20 tokens/s with a delay (p99) of 30 ms; ")
    assert says in words


def test_a_machine_that_holds_not_even_the_first_step_says_so() -> None:
    words = ramp.verdict(ramp.Options(workers=2), [step(50, 900, cpu=1.9)], 0, "delay", 4)
    assert words.startswith("2 workers hold fewer than 50 live replies at 20 tokens/s; there it rises to 900 ms")


def report(*steps: ramp.Step) -> ramp.Report:
    return ramp.Report(
        options=ramp.Options(), machine=machine.this_machine(), idle_memory_kb=45_000.0, steps=list(steps), held=50,
        ended_by="delay", verdict="One worker holds 50.", notes=["A note."],
    )  # fmt: skip


@pytest.mark.parametrize("ink", [show.BLOCKS, show.ASCII])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_table_and_the_plot_fit_the_terminal(width: int, ink: show.Ink) -> None:
    lines = list(show.lines(report(step(50), step(100, 180), step(200, 5000)), width, ink))
    table, plot = lines[:5], lines[6:-3]
    assert [row.split()[0] for row in table] == ["live", "replies", "50", "100", "200"]
    assert len({len(row) for row in table}) == 1
    assert table[3].split() == ["100", "2,000", "95%", "25.0", "µs", "40", "kB", "90", "ms", "180", "ms"]
    bars = [line for line in plot if ink.full in line and not line.startswith("Delay")]
    assert len(bars) == 9
    assert all(len(bar) <= max(width, 45) for bar in bars)
    assert ink.mark in bars[6]  # the limit, which 30 ms do not reach
    assert ">" in bars[8]
    assert lines[-3:-1] == ["One worker holds 50.", "A note."]


def test_what_cannot_be_measured_is_not_drawn() -> None:
    unknown = step(50, cpu_us_per_token=None, cpu=None, memory_kb_per_reply=None)
    lines = list(show.lines(report(unknown), 80, show.BLOCKS))
    assert lines[2].split() == ["50", "1,000", "-", "-", "-", "15", "ms", "30", "ms"]
    assert not [line for line in lines if line.startswith(("CPU per", "Memory"))]


def test_a_terminal_without_blocks_gets_letters() -> None:
    assert show.ink("utf-8") is show.BLOCKS
    assert show.ink("ascii") is show.ink(None) is show.ink("no such thing") is show.ASCII
