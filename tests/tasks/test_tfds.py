"""Tasks from prepared TensorFlow data sets, read without TensorFlow."""

import warnings

import numpy as np
import pytest

from encoders.data.labelled import LabelledData
from encoders.data.prepare import prepare_store
from encoders.data.row_files import RowReader
from encoders.tasks.squad import QATask
from encoders.tasks.text_tasks import TextTask
from encoders.text.source import CorpusError
from encoders.text.tfds_reader import open_tfds_dataset
from encoders.text.tokenization import TokenizerSpec
from tests import task_examples

PAIRS = [("tan here", "tan", 1), ("what", "who where", 0), ("good", "bad here", 1)]
ASKED = {"id": "q1", "title": "t", "context": "who is tan here", "question": "who?", "is_impossible": False}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of two data sets: pairs of texts with a class, and questions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        feature = tfds.features
        text = feature.Text()
        answers = feature.Sequence({"text": text, "answer_start": np.int32})

        class Pairs(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            FEATURES = {"premise": text, "hypothesis": text, "label": feature.ClassLabel(names=["b", "a"])}

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=feature.FeaturesDict(self.FEATURES))

            def _split_generators(self, manager):
                return {"train": self._generate_examples(), "validation": self._generate_examples()}

            def _generate_examples(self):
                for index, row in enumerate(PAIRS):
                    yield index, dict(zip(self.FEATURES, row, strict=True))

        class Asked(Pairs):
            FEATURES = {name: text for name in ("id", "title", "context", "question")}
            FEATURES |= {"is_impossible": np.bool_, "answers": answers}

            def _generate_examples(self):
                found = {"text": ["tan", "tan here"], "answer_start": [7, 7]}
                yield 0, ASKED | {"answers": found}
                yield 1, ASKED | {"id": "q2", "is_impossible": True, "answers": {"text": [], "answer_start": []}}

        folder = tmp_path_factory.mktemp("tfds")
        for builder in (Pairs, Asked):
            builder(data_dir=folder, file_format="array_record").download_and_prepare()
        return folder


def test_a_tfds_data_set_of_pairs_is_read_by_columns_and_label_indices(home):
    task = TextTask("pairs", ("sentence1", "sentence2"), labels=("x", "y"), tfds_columns=("premise", "hypothesis"))
    words = TokenizerSpec(path=task_examples.vocabulary(home))
    data = LabelledData(task, f"tfds:{home}/pairs/1.0.0", words, store_dir=str(home / "stores"))
    store = prepare_store(data)
    assert list(store.metadata["splits"]) == ["train", "dev"]
    said = {
        tuple(store.tokenizer.decode(split.tokens[a:b]) for a, b in zip(edges, edges[1:], strict=False)): label
        for split in (store.train_split, store.eval_splits[0])
        for edges, label in (
            (
                split.sentence_offsets[split.document_offsets[i] : split.document_offsets[i + 1] + 1],
                split.label_columns["label"][i],
            )
            for i in range(split.num_documents)
        )
    }
    assert said == {(first, f"{second} [SEP]"): label for first, second, label in PAIRS}
    assert data.describe_content()["files"] == {"train": "pairs/1.0.0@train", "dev": "pairs/1.0.0@validation"}


def test_tfds_questions_have_their_answers(home):
    rows = {row.metadata["id"]: row for row in QATask().read_examples(f"tfds:{home}/asked/1.0.0", "dev", RowReader())}
    assert rows["q1"].texts == ("who?", "who is tan here") and rows["q1"].target == (7, 10)
    assert rows["q1"].metadata["answers"] == ["tan", "tan here"] and rows["q2"].target is None


def test_a_missing_data_set_is_refused_before_any_work(home):
    task = TextTask("pairs", ("sentence1", "sentence2"), labels=("x", "y"))
    data = LabelledData(task, "tfds:no_such_set", TokenizerSpec(path="v"), store_dir=str(home / "none"))
    with pytest.raises(CorpusError, match="no_such_set"):
        prepare_store(data)
    assert not (home / "none").exists()


def test_a_warning_that_is_an_error_is_not_taken_for_a_missing_data_set(monkeypatch):
    import tensorflow_datasets as tfds

    def warn(*arguments, **options):
        warnings.warn("label() is deprecated and more", FutureWarning, stacklevel=1)

    monkeypatch.setattr(tfds, "builder", warn)
    with pytest.raises(FutureWarning, match="is deprecated"):
        open_tfds_dataset("tfds:wikipedia")
