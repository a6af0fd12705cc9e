"""The benchmarks' command, with numbers so small that its figures mean nothing, and what it makes of figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from benchmarks import core, jobs, report
from benchmarks.__main__ import main
from benchmarks.plans import Arrivals, Count, Plan, Wait, latency, take_steps
from benchmarks.progress import missing
from benchmarks.results import Results, read

MEMORY = ("--transport", "memory", "--loop", "asyncio", "--rounds", "1")


def results_of(folder: Path) -> Results:
    (file,) = folder.glob("*.json")
    return read(file)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = ("consume", "emit", "latency")
    options = ("--short", "--events", "300", "--measure", *measures, "--without", "faststream")
    assert main(["compare", *MEMORY, *options, "--output", str(tmp_path)]) == 0
    results = results_of(tmp_path)
    for measure in ("consume", "emit", "latency alone p50", "latency loaded p99.9"):
        for contender in ("raw", "asyncio"):
            row = results.row("memory", measure, contender)
            assert row is not None, measure
            assert len(row.values) == 1
            assert row.median > 0
    table = capsys.readouterr().out
    assert "| memory | consume | asyncio |" in table
    assert "one dependency, at least once" in table


@pytest.mark.parametrize("what", core.MEASURES)
def test_core(what: str) -> None:
    found = core.job(what, "asyncio", 30)
    assert isfinite(found["value"])
    if what not in ("dependency", "middleware"):  # so few events may well be faster with them
        assert found["value"] > 0


def test_scale_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = ("handlers", "captures", "backlog")
    options = ("--short", "--events", "50", "--what", *what, "--most", "1000", "--output", str(tmp_path / "results"))
    assert main(["scale", *MEMORY, *options]) == 0
    (file,) = (tmp_path / "results").glob("*.json")
    assert [(row.subject, row.measure) for row in read(file).rows] == [
        ("handlers", "1"),
        ("handlers", "1000"),
        ("captures", "0"),
        ("captures", "8"),
        ("backlog", "1000"),
    ]
    capsys.readouterr()
    assert main(["report", str(file), "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "| handlers, us/event | 1 | 1,000 | largest / smallest |" in out
    assert (tmp_path / "report.md").read_text() in out
    assert len(json.loads((tmp_path / "report.json").read_text())) == 1
    if find_spec("matplotlib"):
        assert {picture.name for picture in tmp_path.glob("*.png")} == {f"scale-{name}.png" for name in what}
    else:
        assert "matplotlib is not installed; `pip install --group bench` brings it" in err


def test_what_is_no_result_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    assert main(["report", str(file)]) == 1
    assert "holds no results of `python -m benchmarks compare`" in capsys.readouterr().err


def test_a_contender_that_fails_says_how() -> None:
    job = {"transport": "memory", "url": "memory://x", "measure": "consume", "contender": "nobody", "total": 1}
    with pytest.raises(jobs.JobError, match="measure memory consume nobody failed:"):
        jobs.run_job({"job": "measure", **job})


def test_what_fails_leaves_the_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def run_job(job: dict[str, Any]) -> dict[str, Any]:
        if job["job"] == "measure":
            measured.append(job["contender"])
        if job.get("contender") == "raw":
            raise jobs.JobError("measure memory emit raw failed:\nKeyError: 1")
        return {"rate": 5.0, "memory_mb": 1.0}

    monkeypatch.setattr("benchmarks.compare.run_job", run_job)
    options = ("--measure", "emit", "--without", "faststream", "--output", str(tmp_path))
    assert main(["compare", *MEMORY, "--rounds", "2", *options]) == 1
    assert measured == ["raw", "asyncio", "asyncio"]
    assert [(row.contender, row.values) for row in results_of(tmp_path).rows] == [("asyncio", [5.0, 5.0])]
    out, err = capsys.readouterr()
    assert "- measure memory emit raw failed:" in out
    assert "KeyError: 1" in err


def test_what_is_not_installed_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.compare.missing", lambda package, use: f"{use}: no {package}")
    assert main(["compare", "--transport", "kafka", "--loop", "trio"]) == 1
    out = capsys.readouterr().out
    assert 'Left out kafka: confluent_kafka is not installed; `pip install "dispytch[kafka]"` brings it.' in out
    assert 'Left out trio, which is not installed: pip install "dispytch[trio]".' in out
    assert "Left out FastStream: no faststream" in out


def test_missing_packages_are_named() -> None:
    assert missing("json", "No JSON") is None
    assert missing("no_such_package", "No plots") == (
        "No plots: no_such_package is not installed; `pip install --group bench` brings it."
    )


def results(**values: list[float]) -> Results:
    known: dict[str, Any] = {"time": "", "system": "", "processors": 1, "load_before": 0.0, "versions": {}}
    found = Results("compare", known, {"rounds": 3})
    for contender, some in values.items():
        for value in some:
            found.add("kafka", "consume", contender, "events/s", value, None, "")
    return found


def test_ratios_are_taken_within_a_round() -> None:
    found = results(raw=[100.0, 1000.0, 10.0], trio=[50.0, 400.0, 6.0])
    row = found.row("kafka", "consume", "trio")
    assert row is not None
    assert found.ratios(row, "raw") == [0.5, 0.4, 0.6]
    assert found.ratios(row, "faststream") == []
    assert report.markdown(found).splitlines()[-1] == (
        "| kafka | consume | trio | 50.0 | events/s | 6.00 to 400 | 0.50 |  | >= 0.30 x raw, >= 25 x FastStream |"
    )


def test_events_that_do_not_arrive_are_an_error() -> None:
    count = Count(3)
    assert not count.add(0)
    assert not count.add(0)
    assert not count.add(2)
    with pytest.raises(RuntimeError, match="1 of 3 events did not arrive"):
        count.check()


def test_latency_counts_from_when_an_event_was_due() -> None:
    arrivals, found = Arrivals(), dict[str, float]()
    plan = Plan("memory", "", "", None, True, 400, arrivals, iter(()))
    plan.steps = latency(arrivals, plan.total, found)
    handled: list[int] = []

    def handle(*numbers: int) -> None:
        for number in numbers:
            handled.append(number)
            plan.took(number)

    take_steps(plan, handle, lambda numbers: handle(*numbers))
    assert handled == list(range(400))
    assert 0 < found["alone_p50"] <= found["alone_p99"] <= found["alone_p99.9"]
    assert 0 < found["loaded_p50"] <= found["loaded_p99.9"]
    assert found["load"] > 0


def test_lost_events_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.plans.PATIENCE", 0.01)
    steps: Iterator[Wait] = iter([Wait()])
    with pytest.raises(RuntimeError, match="2 events did not arrive"):
        take_steps(Plan("memory", "", "", None, True, 2, Count(2), steps), print, print)
