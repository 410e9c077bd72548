"""What `launch.py train` does with several members: one that fails ends no other."""

import json

import pytest

import launch
from encoders.run import loop
from encoders.run.folder import RunError, read_result

SWEEP = """
from dataclasses import replace
from tests.test_experiment import BASE
data = replace(BASE.data, corpus=("embedded",))
experiments = [replace(BASE, name=f"member-{seed}", seed=seed, data=data) for seed in range(4)]
"""
REASONS = {"member-1": RunError("a reason of its own"), "member-2": KeyError("a mistake")}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Trains the four members, of which two fail while they have reasons to; lists those that are begun."""
    begun, reasons = [], dict(REASONS)

    def train(experiment, folder, *rest):
        if read_result(folder) is None:
            begun.append(experiment.name)
            if experiment.name in reasons:
                raise reasons.pop(experiment.name)
            folder.mkdir(parents=True, exist_ok=True)
            numbers = {"parameters": 7, "tokens_per_second": 1.0, "steps": 100}
            scores = {"loss": 2.5, "mlm_mask_accuracy": 0.5, "mlm_mask_accuracy_error": 0.1, "mlm_mask_baseline": 0.2}
            made = {"name": experiment.name, **numbers, "heldout": scores}
            (folder / "result.json").write_text(json.dumps(made))
        return read_result(folder)

    monkeypatch.setattr(loop, "train", train)
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP)

    def run():
        begun.clear()
        return launch.main(["train", str(path), "--runs", str(tmp_path / "runs")]), begun

    return run


def test_a_member_that_fails_is_named_with_its_reason_and_the_others_are_trained(sweep, capsys):
    assert sweep() == (1, ["member-0", "member-1", "member-2", "member-3"])
    shown = capsys.readouterr()
    assert "member-1 failed: a reason of its own" in shown.err and "failed: member-1, member-2" in shown.err
    assert shown.err.count("Traceback") == 1 and "KeyError: 'a mistake'" in shown.err  # nobody has foreseen that one
    assert "member-0" in shown.out and "member-3" in shown.out and "member-1" not in shown.out


def test_the_same_command_trains_what_is_not_finished(sweep, capsys):
    sweep()
    capsys.readouterr()
    assert sweep() == (0, ["member-1", "member-2"])
    shown = capsys.readouterr()
    assert "already finished: member-0, member-3" in shown.err
    assert all(f"member-{seed}" in shown.out for seed in range(4))
