"""The benchmarks' own machinery, at sizes that take no time; what they measure is in the README."""

import dataclasses
import json

import pytest
import torch

from resdit_ext.__main__ import main
from resdit_ext.lab.benchmarks import api, counted, flux, parallel, table, timed, whole
from resdit_ext.lab.benchmarks.table import Row, markdown, ratio
from resdit_ext.method.phases import Phase
from tests.settings import scaled


def test_a_row_without_a_figure_says_so():
    lines = markdown([Row("time", "<= 1", 0.5, (0.4, 0.6)), Row("memory", "", None, unit=" GB", how="needs a GPU")])
    assert lines.splitlines()[2:] == [
        "| time | <= 1 | 0.50x | 0.40 to 0.60 | counted |",
        "| memory |  | not measured |  | needs a GPU |",
    ]


def test_a_ratio_is_taken_in_turns_after_a_warm_up(monkeypatch):
    """On a clock that the work itself moves."""
    now, costs = [0.0], iter([9.0, 9.0, 1.0, 2.0, 2.0, 6.0, 1.0, 8.0])  # (work, to) to warm up, then (to, work) thrice
    monkeypatch.setattr(table.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += next(costs)

    assert ratio(work, work, "cpu", 3) == (3.0, 2.0, 8.0)


def test_the_benchmark_command(tmp_path, monkeypatch, capsys):
    devices = []
    for module in (counted, timed, api, whole):
        row = Row(module.__name__, "", 1.0)
        monkeypatch.setattr(module, "rows", lambda *device, row=row: devices.extend(device) or [row])
    readme, figures = tmp_path / "README.md", tmp_path / "figures.json"
    readme.write_text("<!-- benchmarks --><!-- /benchmarks -->")
    monkeypatch.setattr("sys.argv", ["x", "benchmark", "--json", str(figures), "--readme", str(readme)])
    assert main() == 0
    written, printed = json.loads(figures.read_text()), capsys.readouterr().out
    modules = "counted", "timed", "api", "whole"
    assert [row["what"].rpartition(".")[2] for row in written["rows"]] == list(modules)
    assert written["environment"]["device"] and devices == ["cpu", "cpu"]
    assert readme.read_text() == f"<!-- benchmarks -->\n{printed}<!-- /benchmarks -->"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(timed, "SCALED", scaled(base_tokens=64))
    shape = dataclasses.replace(timed.SHAPES["cpu"], heads=1, side=20, rounds=2)
    monkeypatch.setattr(timed, "SHAPES", {"cpu": shape})


def test_the_straightforward_form_and_ours_agree_before_they_are_timed(small, monkeypatch):
    assert timed.joining("cpu").value > 0
    monkeypatch.setattr(timed, "our_join", lambda plan, image, *_: image.float())
    with pytest.raises(AssertionError, match="the two forms differ"):
        timed.joining("cpu")


def test_shares_and_local_calls(small, monkeypatch):
    (row,) = timed.local_against_plain(20, "cpu")
    monkeypatch.setattr(timed, "ratio", lambda work, to, *_: (work(), to(), (0.5, 0.4, 0.6))[-1])  # no clock
    share = timed.around_attention("cpu")
    assert (share.value, share.spread) == (50, (40, 60))
    assert row.value > 0 and "20x20 tokens" in row.what


def test_rows_that_need_a_gpu_are_listed_without_one():
    rows = whole.rows("cpu")
    assert rows and all(row.value is None and row.how == "needs `--device cuda`" for row in rows)


def test_a_trial_has_all_the_rows_that_need_a_gpu(monkeypatch):
    ran = []
    monkeypatch.setattr(whole, "run_time", lambda calls, device: ran.extend(phase for _, phase, _ in calls) or 2.0)
    monkeypatch.setattr(whole, "peak", lambda calls, device: 3e9)
    rows = whole.rows("cpu", trial=True)
    assert [row.value for row in rows] == [1.0, 0.0] * len(whole.AIMS) and not any(row.target for row in rows)
    assert set(ran) == {None, *Phase} and all("a trial" in row.what for row in rows)


def test_every_tensor_of_a_call_is_on_the_models_device(monkeypatch):
    """On a device without data, where a tensor of another device cannot take part."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    with torch.inference_mode():
        transformer, kinds = flux.model("meta", (1, 1), 1), set()
        for config in flux.SETTINGS.values():
            for _, phase, call in flux.calls(transformer, dataclasses.replace(config, base_tokens=256), 1024, "meta"):
                call()  # raises where two devices meet
                kinds.add(phase)
    assert kinds == set(Phase)


def test_a_runs_time_is_each_phases_call_times_its_steps(monkeypatch):
    monkeypatch.setattr(whole, "seconds", lambda call, device: call())
    assert whole.run_time([(10, None, lambda: 2.0), (25, None, lambda: 4.0)], "cpu") == 120


def test_a_large_request_is_timed_only_where_it_passes(monkeypatch):
    (row,) = api.rows(1)
    assert 0 < row.spread[0] <= row.value <= row.spread[1] and row.what.startswith("an img2img request of 1 MB")
    monkeypatch.setattr(api, "request", lambda *_: [{"type": "http.request", "body": b'{"alwayson_scripts": {}}'}] * 2)
    with pytest.raises(AssertionError, match="as it was sent"):
        api.rows(1)


def test_ours_sends_what_plain_ulysses_sends(monkeypatch):
    """On tensors without data: the same bytes in a fused step, and half of the work on each of two devices."""
    monkeypatch.setattr(parallel, "DEVICES", (2,))
    ratio, step, mean, share = parallel.counted_rows(1536)
    tensor = (512 + 96**2) * 3072 * 2
    expected = parallel.REPEATS * 2 * 4 * tensor / 4 + 96**2 * 64 * 2 / 2
    assert ratio.value == 1 and step.value == pytest.approx(expected / 1e9)
    assert mean.value < step.value and 0.5 <= share.value < 0.53


def test_the_speed_up_is_measured_on_several_gpus_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (row,) = parallel.timed_rows("cuda")
    assert row.value is None and "torchrun --nproc-per-node N" in row.how


def test_the_parallel_rows_take_the_place_of_the_others(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(parallel, "rows", lambda device: [Row(f"parallel, {device}", "", 1.0)])
    page = tmp_path / "many_gpus.md"
    page.write_text("<!-- parallel --><!-- /parallel -->")
    monkeypatch.setattr("sys.argv", ["x", "benchmark", "--parallel", "--readme", str(page)])
    assert main() == 0
    assert "parallel, cpu" in capsys.readouterr().out and "parallel, cpu" in page.read_text()
