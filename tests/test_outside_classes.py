"""An objective, a format, a task and a part of the model in a user's file: they take part as those of the package
do."""

import json
import subprocess
import sys

import pytest

import launch
from encoders.experiment import apply_settings
from encoders.run.preemption import STOPPED_STATUS
from encoders.run.run import Run
from encoders.training.metric_log import read_metric_rows
from encoders.utils import code_files, overrides, serialization
from encoders.utils.code_files import build_child_environment, import_file
from encoders.utils.serialization import ExperimentError
from tests import task_examples, texts
from tests.refusals import raises_naming
from tests.test_experiment import BASE

pytestmark = pytest.mark.live

OWN_FILE = """
from dataclasses import dataclass, replace

import flax.linen as nn
import optax

import encoders
from encoders.data.formats import FullSentences
from encoders.finetuning.grids import Recipe, build_finetuning
from encoders.model.encoder import Encoder
from encoders.model.layers import FeedForward
from encoders.objectives.base import Objective
from encoders.objectives.masked_lm import MaskedLM
from encoders.tasks.text_tasks import TextTask
from encoders.utils.metrics import Mean
from widths import HIDDEN_SIZE  # lies beside this file


@encoders.register
@dataclass(frozen=True)
class HalvedLM(MaskedLM):
    halved: bool = True

    @property
    def loss_weights(self):
        return {name: 0.5 * weight for name, weight in super().loss_weights.items()}


@encoders.register(name="TokenCopy")
@dataclass(frozen=True)
class CopyObjective(Objective):
    rate: float = 1.0
    loss_weights = {"copy_loss": 1.0}

    def module(self, config, vocab):
        return CopyModule(config, self, vocab)


class CopyModule(nn.Module):
    config: object
    objective: object
    vocab: object

    @nn.compact
    def __call__(self, batch, train=False):
        hidden = Encoder(self.config, name="encoder")(batch, train=train)
        logits, is_token = nn.Dense(self.config.vocab_size, name="copies")(hidden), batch.example_ids > 0
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.input_ids)
        return {"copy_loss": Mean((nll * is_token).sum(), is_token.sum())}


@encoders.register(name="Paragraphs")
@dataclass(frozen=True)
class ParagraphFormat(FullSentences):
    pass


@encoders.register
class NarrowFeedForward(FeedForward):
    pass


@encoders.register
@dataclass(frozen=True)
class ReviewTask(TextTask):
    pass


tiny = encoders.load_experiments("tiny", corpus="CORPUS")["tiny"]
phases = tuple(replace(phase, format=ParagraphFormat()) for phase in tiny.phases)
model = replace(tiny.model, hidden_size=HIDDEN_SIZE, embedding_size=HIDDEN_SIZE)
own = replace(tiny, name="own", model=model, objective=HalvedLM(), phases=phases)
copy = replace(own, name="copy", objective=CopyObjective(rate=0.5), grad_accum_steps=2)
part = replace(own, name="part", model=replace(model, feed_forward=NarrowFeedForward))
review = build_finetuning(
    "review",
    ReviewTask("review", ("sentence",), "label", ("0", "1"), files=(("train", "train.tsv"), ("dev", "dev.tsv"))),
    "ROWS", Recipe(1e-3, 32, num_steps=2, warmup=1, max_seq_length=32), 96,
    init_from="RUNS/own", config=model, tokenizer_path="RUNS/own/tokenizer.json",
)
review = replace(review, data=replace(review.data, store_dir=tiny.data.store_dir))
experiments = [own, copy, part, review]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a user's file, and its four experiments trained in `runs`; the first was stopped and resumed."""
    home = tmp_path_factory.mktemp("home")
    corpus = texts.write(home / "text.txt", documents=60)
    rows = task_examples.classes(home / "rows")
    text = OWN_FILE.replace("CORPUS", str(corpus)).replace("ROWS", rows).replace("RUNS", str(home / "runs"))
    (home / "own_classes.py").write_text(text)
    (home / "widths.py").write_text("HIDDEN_SIZE = 8\n")
    with pytest.MonkeyPatch.context() as patch:
        registered = {}
        patch.setattr(serialization, "REGISTERED_CLASSES", registered)
        patch.setattr(overrides, "REGISTERED_CLASSES", registered)
        patch.setattr(code_files, "IMPORTED_FILES", {})
        patch.setattr(sys, "path", list(sys.path))
        command = ["train", str(home / "own_classes.py"), "--runs", str(home / "runs")]
        assert launch.main([*command, "--only", "own", "--stop-after", "0s"]) == STOPPED_STATUS
        assert launch.main(command) == 0
        yield home
    for name in ("own_classes", "widths"):
        sys.modules.pop(name, None)


def test_classes_outside_the_package_train_and_resume(home):
    for name, steps in (("own", 4), ("copy", 4), ("part", 4), ("review", 2)):
        assert json.loads((home / "runs" / name / "result.json").read_text())["steps"] == steps
    saved = json.loads((home / "runs/own/experiment.json").read_text())["experiment"]
    assert (saved["objective"]["class"], saved["phases"][0]["format"]["class"]) == ("HalvedLM", "Paragraphs")


def test_an_objective_that_shares_the_base_class_alone_is_trained_saved_and_loaded(home):
    saved = json.loads((home / "runs/copy/experiment.json").read_text())["experiment"]
    assert saved["objective"] == {"class": "TokenCopy", "rate": 0.5}
    opened = Run.open(home / "runs/copy")
    assert opened.experiment.objective == import_file(home / "own_classes.py").CopyObjective(0.5)
    step, params = opened.load_params()
    assert step == 4 and set(params) == {"encoder", "copies"}
    rows = [row for row in read_metric_rows(home / "runs/copy/metrics.jsonl") if row["split"] == "heldout"]
    assert rows[-1]["loss"] == rows[-1]["copy_loss"] > 0


def test_a_file_is_executed_once_until_it_changes(home, tmp_path):
    assert import_file(home / "own_classes.py") is import_file(home / "own_classes.py")
    path = tmp_path / "number.py"
    path.write_text("NUMBER = 1\n")
    first = import_file(path)
    path.write_text("NUMBER = 22\n")
    assert (first.NUMBER, import_file(path).NUMBER) == (1, 22)
    with raises_naming(ExperimentError, "text.txt"):
        import_file(home / "text.txt")


def test_a_setting_chooses_a_registered_class_by_its_base_class(home):
    assert apply_settings(BASE, ["objective=HalvedLM"]).objective.halved
    assert apply_settings(BASE, ["objective=TokenCopy"]).objective.rate == 1.0
    with raises_naming(ExperimentError, "objective='TokenCopies'", "MaskedLM", "EncoderOnly", "HalvedLM, TokenCopy"):
        apply_settings(BASE, ["objective=TokenCopies"])
    with raises_naming(ExperimentError, "optimizer='HalvedLM'", "AdamW, Lamb"):
        apply_settings(BASE, ["optimizer=HalvedLM"])


FRESH_PROCESS = """
import contextlib, io, sys
from encoders.cli.parser import main
runs, own_file, out = sys.argv[1:]
error = io.StringIO()
with contextlib.redirect_stderr(error):
    assert main(["predict", f"{runs}/own", "fill", "a [MASK]"]) == 1
message = error.getvalue()
assert all(part in message for part in ("HalvedLM, Paragraphs", "--code")) and message.count("\\n") == 1, message
assert main(["predict", f"{runs}/own", "fill", "a [MASK]", "--code", own_file]) == 0
assert main(["predict", f"{runs}/part", "embed", "a text"]) == 0
assert main(["predict", f"{runs}/review", "classify", "a text"]) == 0
assert main(["evaluate", f"{runs}/own", "--batches", "1"]) == 0
assert main(["evaluate", f"{runs}/copy", "--batches", "1"]) == 0
assert main(["export", f"{runs}/own", out]) == 0
"""


def test_a_folder_that_names_outside_classes_opens_with_their_file_and_executes_nothing_by_itself(home, tmp_path):
    command = [sys.executable, "-c", FRESH_PROCESS, home / "runs", home / "own_classes.py", tmp_path / "exported"]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=build_child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "config.json").exists()
