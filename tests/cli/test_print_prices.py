"""The verb `price`: what it prints, with a compiler that is not asked."""

from collections import Counter

import pytest

import launch
from encoders.cli import print_prices as price_verb
from encoders.costs import search
from encoders.costs.price import StepPrice
from tests.refusals import assert_names

COMMAND = ["price", "bert", "--only", "bert-base"]


@pytest.fixture
def compiled(monkeypatch):
    """Let steps of 150 M cycles fit where all is recomputed; return the experiments that were priced."""
    priced = []

    def price_step(experiment, phase, topology):
        priced.append(experiment)
        cycles, sent = Counter(attention=100_000_000, optimizer=50_000_000), Counter({"all-reduce": 2e9})
        missing = None if experiment.model.remat == "full" else "21.5 GiB"
        return StepPrice(experiment, phase, topology, 2**31, 3 * 2**30, cycles, sent, missing)

    monkeypatch.setattr(search, "price_step", price_step)
    monkeypatch.setattr(price_verb, "describe_devices", lambda topology: ())
    return priced


def test_it_prints_memory_time_parts_and_money(compiled, capsys):
    assert launch.main([*COMMAND, "--on", "v5e:2x4", "--rate", "v5e=2", "--set", "model.remat=full"]) == 0
    out = capsys.readouterr().out
    # 99.8 ms of computing and 10 of sending, a million times.
    assert_names(
        out, "2.00 GiB of arguments and 3.00 of temporaries, of 16 a chip", "109.8 ms, of which 10.0 ms sending"
    )
    assert_names(out, "attention 67%, optimizer 33%", "all-reduce 2 GB", "244.0 chip hours, 488.00 at 2 a chip hour")
    assert "--set" not in out and len(compiled) == 2


def test_where_a_run_does_not_fit_it_says_with_which_settings_it_does(compiled, capsys):
    assert launch.main([*COMMAND, "--on", "v5e:2x4"]) == 0
    captured = capsys.readouterr()
    assert_names(captured.out, "21.5 GiB of 16 GiB", "--set mesh.data=-1 mesh.fsdp=1 mesh.model=1 model.remat=full")
    assert_names(captured.err, "model.remat=dots", "does not fit, 21.5 GiB")


def test_a_search_tries_each_setting_that_changes_speed_alone(compiled, capsys):
    assert launch.main([*COMMAND, "--on", "v5e:2x4", "--search", "--set", "model.remat=full"]) == 0
    tried = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tried")]
    assert_names("\n".join(tried), "mesh.fsdp=-1", "model.unroll_layers=true", "model.remat=none", "grad_accum_steps=4")


def test_gpus_have_a_floor_by_arithmetic(capsys):
    assert launch.main([*COMMAND, "--on", "h200:8", "--rate", "h200=1"]) == 0
    assert_names(capsys.readouterr().out, "floor by arithmetic", "at most", "at least", "at 1 a chip hour")


@pytest.mark.parametrize("rate", ["v5e", "v5e=x", "v9=1", "v5e=-1", "v5e=nan"])
def test_a_rate_that_is_none_is_refused(rate, capsys):
    assert launch.main([*COMMAND, "--on", "h200:8", "--rate", rate]) == 1
    assert_names(capsys.readouterr().err, f"--rate {rate}", "CHIP=MONEY")


def test_nothing_is_priced_before_all_topologies_are_known(compiled, capsys):
    assert launch.main([*COMMAND, "--on", "v5e:2x4,moon:3"]) == 1
    assert_names(capsys.readouterr().err, "--on moon:3")
    assert not compiled
