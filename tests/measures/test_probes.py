"""Linear probes beside scikit-learn in a plain loop, the treebanks they read, and what they refuse."""

import lzma
from collections import Counter
from random import Random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import encoders
from encoders.data.labelled import Example
from encoders.data.row_files import Record, RowError
from encoders.exchange.convert import export_run
from encoders.experiment import RunSpec
from encoders.measures import probes
from encoders.measures.base import describe_measurement, hash_files, parse_measurement
from encoders.measures.probes import LinearProbe
from encoders.measures.treebanks import UPOS_TAGS, find_treebank_files, read_treebank
from encoders.run.folder import RunError
from encoders.tasks.encoder_only import EncoderOnly
from encoders.tasks.glue import GLUE_TASKS
from encoders.tasks.squad import QATask
from encoders.tasks.text_tasks import TextTask
from encoders.tasks.token_classification import TokenTask
from encoders.text.tokenization import load_tokenizer
from encoders.utils.errors import UserError
from encoders.utils.serialization import from_json_value
from tests import task_examples, texts
from tests.inference.small_runs import BERT, LENGTHS
from tests.networks import write_random_run
from tests.refusals import raises_naming

STRENGTHS = (0.01, 1.0)
LAYERS = range(BERT.num_layers + 1)
TAGS = {"n": "NOUN", "r": "VERB", "s": "ADJ", "t": "NOUN", "l": "ADV"}  # by the last letter of a word
RANGE, EMPTY_NODE = "1-2\ttogether" + 8 * "\t_", "1.1\tunseen\tunseen\tVERB" + 6 * "\t_"


def draw_sentences(count: int, seed: int, wrong_share: float = 0.0) -> list[list[tuple[str, str]]]:
    """Draw sentences of words and tags, of which a share is drawn at random."""
    rng, known = Random(seed), texts.words()[:60]
    draw_tag = lambda word: rng.choice(UPOS_TAGS[:4]) if rng.random() < wrong_share else TAGS[word[-1]]
    return [[(word, draw_tag(word)) for word in rng.choices(known, k=rng.randint(2, 9))] for _ in range(count)]


def write_treebank(path, sentences) -> None:
    lines = []
    for sentence in sentences:
        lines += ["# sent_id = 1", "# text = NOUN\t1", RANGE]
        for i, (word, tag) in enumerate(sentence, 1):
            lines.append("\t".join([str(i), word, "lemma", tag, *6 * "_"]))
            lines += [EMPTY_NODE] if i == 1 else []
        lines.append("")
    content = "\n".join(lines).encode()
    path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    tokenizer = load_tokenizer(task_examples.vocabulary(home))
    spec = RunSpec(name="random", model=BERT, objective=EncoderOnly(has_pooler=True))
    write_random_run(home / "run", spec, tokenizer)
    return home / "run"


@pytest.fixture(scope="module")
def predictor(folder):
    return encoders.load(folder, batch_size=4, lengths=LENGTHS[1:])


@pytest.fixture(scope="module")
def treebank(tmp_path_factory):
    """Folder of a treebank whose test sentences have many wrong tags."""
    home = tmp_path_factory.mktemp("treebank")
    write_treebank(home / "made-ud-dev.conllu", draw_sentences(30, seed=1))
    write_treebank(home / "made-ud-test.conllu.xz", draw_sentences(20, seed=TEST_SEED, wrong_share=0.7))
    return home


TEST_SEED = 6  # one that scores another layer best than the cross-validation does


def embed_words(predictor, sentences, layer: int) -> np.ndarray:
    """Return the vector of the first token of each word, from the tokens of each word by itself."""
    vectors = []
    for sentence in sentences:
        words = [word for word, _ in sentence]
        (tokens,) = predictor.embed_tokens(" ".join(words), layer)
        sizes = [len(ids) for ids in predictor.run.tokenizer.encode_batch(words)]
        vectors += [tokens[i][1] for i in np.cumsum([1, *sizes])[:-1]]
    return np.stack(vectors)


def fit_plainly(features, labels, strength):
    scaler = StandardScaler().fit(features)
    classifier = LogisticRegression(C=strength, tol=probes.TOLERANCE, max_iter=10_000)
    return scaler, classifier.fit(scaler.transform(features), labels)


def predict_plainly(features, labels, folds, test_features):
    """Return the best mean accuracy over folds, and predictions with the strength that has it."""
    accuracies = {}
    for strength in STRENGTHS:
        of_folds = []
        for fold in np.unique(folds):
            is_train = folds != fold
            scaler, classifier = fit_plainly(features[is_train], labels[is_train], strength)
            predicted = classifier.predict(scaler.transform(features[~is_train]))
            of_folds.append(np.mean(predicted == labels[~is_train]))
        accuracies[strength] = np.mean(of_folds)
    best = max(STRENGTHS, key=accuracies.get)
    scaler, classifier = fit_plainly(features, labels, best)
    return accuracies[best], classifier.predict(scaler.transform(test_features))


def probe_plainly(embed, train, test, num_folds=3):
    """Return the cross-validated accuracy of each layer, and where its probe is right: sentences in, `embed(s, n)`."""
    labels, test_labels = (np.array([tag for s in sentences for _, tag in s]) for sentences in (train, test))
    row_folds = probes.assign_folds(len(train), num_folds)
    folds = np.array([fold for fold, sentence in zip(row_folds, train, strict=True) for _ in sentence])
    found = [
        predict_plainly(embed(train, n).astype(np.float64), labels, folds, embed(test, n).astype(np.float64))
        for n in LAYERS
    ]
    return [accuracy for accuracy, _ in found], [predicted == test_labels for _, predicted in found]


def test_the_probe_equals_a_plain_loop_of_scikit_learn_and_its_layer_is_that_of_the_cross_validation(
    predictor, treebank
):
    measurement = LinearProbe(str(treebank), regularisations=STRENGTHS[::-1]).compute(predictor)
    train, test = draw_sentences(30, seed=1), draw_sentences(20, seed=TEST_SEED, wrong_share=0.7)
    validated, is_right = probe_plainly(lambda s, n: embed_words(predictor, s, n), train, test)
    accuracies, best = [float(np.mean(right)) for right in is_right], int(np.argmax(validated))
    counts = Counter(tag for sentence in test for _, tag in sentence)
    assert accuracies[best] < max(accuracies)  # the test rows would choose another layer
    assert measurement.scores == {
        "probe": accuracies[best],
        "probe_best_layer": best,
        **{f"probe_layer_{n}": accuracies[n] for n in LAYERS},
        "probe_baseline": max(counts.values()) / counts.total(),
    }
    np.testing.assert_array_equal(measurement.items["probe"], is_right[best])


def test_features_are_the_vectors_of_each_words_first_token_in_every_layer(predictor):
    sentences = [[(word, "X") for word in words.split()] for words in ("tan-ber Mut .", "naret", "ber tan " * 9)]
    values = [{"words": [word for word, _ in s], "tags": [tag for _, tag in s]} for s in sentences]
    examples = [TokenTask(UPOS_TAGS).parse_row(Record("here", row)) for row in values]
    rows = [probes.encode_words(predictor, example) for example in examples]
    features = probes.compute_features(predictor, rows, None)
    for layer in LAYERS:
        np.testing.assert_allclose(features[layer], embed_words(predictor, sentences, layer), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_or_a_pair_is_one_vector_in_every_layer(pooling, predictor):
    rows = [("tan ber mut",), ("tan", "ber mut " * 50), ("mut mut",)]
    encoded = [probes.encode_texts(predictor, Example("here", row, 0)) for row in rows]
    features = probes.compute_features(predictor, encoded, pooling)
    for layer in LAYERS:
        vectors = list(predictor.embed([row if len(row) == 2 else row[0] for row in rows], pooling, layer))
        np.testing.assert_allclose(features[layer], vectors, atol=1e-5)
    assert [row.num_cut for row in encoded] == [0, 1, 0]


def test_words_behind_the_cut_and_words_without_tokens_are_counted_and_wrong(predictor, tmp_path):
    long, lost = [("tan", "NOUN")] * 70, [("\u200d", "X")]
    write_treebank(tmp_path / "a-train.conllu", [*draw_sentences(12, seed=1), long])
    write_treebank(tmp_path / "a-test.conllu", [[("tan", "NOUN")], lost, long])
    measurement = LinearProbe(str(tmp_path), regularisations=STRENGTHS).compute(predictor)
    num_read = LENGTHS[-1] - 2  # a token each
    assert measurement.items["probe"].tolist() == [True, False, *[True] * num_read, *[False] * (70 - num_read)]
    assert measurement.scores["probe_cut"] == 70 - num_read + 1
    assert measurement.scores["probe_train_cut"] == 70 - num_read
    assert measurement.scores["probe_baseline"] == 71 / 72


def test_the_words_of_a_sentence_are_in_one_fold_and_folds_have_equally_many_sentences(
    predictor, treebank, monkeypatch
):
    seen, fit = [], probes.fit_probe
    monkeypatch.setattr(probes, "fit_probe", lambda *args: seen.append(args[2]) or fit(*args))
    LinearProbe(str(treebank), regularisations=STRENGTHS, folds=4, max_test_rows=2).compute(predictor)
    ends = np.cumsum([len(sentence) for sentence in draw_sentences(30, seed=1)])
    sentence_folds = [np.unique(folds) for folds in np.split(seen[0], ends[:-1])]
    assert len(seen) == len(LAYERS) and {len(folds) for folds in sentence_folds} == {1}
    assert sorted(np.bincount(np.concatenate(sentence_folds))) == [7, 7, 8, 8]


def test_rows_are_drawn_at_equal_distances_from_the_whole_file(treebank):
    train, test = LinearProbe(str(treebank), max_train_rows=7, max_test_rows=2).read_examples()
    sentences = [" ".join(word for word, _ in sentence) for sentence in draw_sentences(30, seed=1)]
    assert [row.texts[0] for row in train] == [sentences[i] for i in (0, 4, 8, 12, 17, 21, 25)]
    assert len(test) == 2 and len(LinearProbe(str(treebank)).read_examples()[1]) == 20


def test_a_task_of_texts_is_scored_on_its_development_rows_under_its_name(predictor, tmp_path):
    task_examples.classes(tmp_path / "SST-2", rows=40, dev=21)
    measure = LinearProbe(str(tmp_path / "SST-2"), GLUE_TASKS["SST-2"], regularisations=STRENGTHS, pooling="cls")
    measurement = measure.compute(predictor)
    rows = [
        [line.split("\t") for line in (tmp_path / "SST-2" / name).read_text().splitlines()[1:]]
        for name in ("train.tsv", "dev.tsv")
    ]
    embed = lambda sentences, n: np.stack(list(predictor.embed([s[0][0] for s in sentences], "cls", n)))
    train, test = ([[(text, label)] for text, label in split] for split in rows)
    validated, is_right = probe_plainly(embed, train, test)
    best, labels = int(np.argmax(validated)), [label for _, label in rows[1]]
    assert best > 0  # [CLS] is the same in every embedding
    assert measurement.scores == {
        "probe_sst_2": is_right[best].mean(),
        "probe_sst_2_best_layer": best,
        **{f"probe_sst_2_layer_{n}": is_right[n].mean() for n in LAYERS},
        "probe_sst_2_baseline": max(labels.count("0"), labels.count("1")) / 21,
    }
    content = describe_measurement(predictor.run, measure, 3, hash_files(measure), measurement)
    assert from_json_value(content["measure"]) == measure
    assert sorted(content["data"]) == ["SST-2/dev.tsv", "SST-2/train.tsv"]
    np.testing.assert_array_equal(parse_measurement(content).items["probe_sst_2"], is_right[best])


def test_a_task_of_tags_reads_its_own_files(predictor, tmp_path):
    task = TokenTask(("O", "B-PER", "B-LOC"), "Entities (made up)")
    measure = LinearProbe(task_examples.tags(tmp_path), task, regularisations=STRENGTHS)
    assert [path.name for path in measure.list_files()] == ["train.txt", "dev.txt"]
    measurement, prefix = measure.compute(predictor), "probe_entities__made_up_"
    lines = [line.split() for line in (tmp_path / "dev.txt").read_text().splitlines() if line]
    assert len(measurement.items[prefix]) == len(lines) and measurement.items[prefix].mean() > 0.95
    assert measurement.scores[f"{prefix}_baseline"] == np.mean([tag == "O" for *_, tag in lines])


def test_a_treebank_gives_words_and_tags_without_comments_ranges_and_empty_nodes(tmp_path):
    path, marked = tmp_path / "a.conllu", tmp_path / "b.conllu.xz"
    lines = ["# newdoc", RANGE, "1\tdo\tdo\tAUX" + 6 * "\t_", EMPTY_NODE, "2\tn't\tnot\tPART" + 6 * "\t_", "", ""]
    lines += ["# text = 10 000 #", "1\t10 000\t_\tNUM" + 6 * "\t_", "2\t#\t#\tSYM" + 6 * "\t_"]
    path.write_text("\n".join(lines), encoding="utf-8")
    marked.write_bytes(lzma.compress("\r\n".join(["\ufeff" + lines[0], *lines[1:], ""]).encode()))
    expected = [{"words": ["do", "n't"], "tags": ["AUX", "PART"]}, {"words": ["10 000", "#"], "tags": ["NUM", "SYM"]}]
    for file in (path, marked):
        assert [row.values for row in read_treebank(file)] == expected


def test_the_training_file_of_a_treebank_comes_before_its_development_file(tmp_path):
    for name in ("a-dev.conllu", "a-test.conllu", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in find_treebank_files(tmp_path)] == ["a-dev.conllu", "a-test.conllu"]
    (tmp_path / "a-train.conllu.xz").touch()
    assert [path.name for path in find_treebank_files(tmp_path)] == ["a-train.conllu.xz", "a-test.conllu"]
    (tmp_path / "b-test.conllu.xz").touch()
    with raises_naming(UserError, tmp_path, "a-test.conllu, b-test.conllu.xz"):
        find_treebank_files(tmp_path)
    with raises_naming(UserError, tmp_path / "empty", "*-dev.conllu or *-dev.conllu.xz", "none"):
        find_treebank_files(tmp_path / "empty")


GOOD_LINE = "1\ttan\ttan\tNOUN" + 6 * "\t_"


@pytest.mark.parametrize(
    "content, problem",
    [
        ("1 tan tan NOUN\n", ":1: 1 columns"),
        (GOOD_LINE + "\n3" + GOOD_LINE[1:], ":2: the index '3'"),
        (GOOD_LINE.replace("NOUN", "NN"), ":1: the tag 'NN'"),
        (GOOD_LINE.replace("tan", " "), ":1: the word ' '"),
        ("# nothing\n\n", ": it holds no words"),
    ],
)
def test_a_bad_line_of_a_treebank_is_named(tmp_path, content, problem):
    for name in ("a-dev.conllu", "a-test.conllu"):
        (tmp_path / name).write_text(content, encoding="utf-8")
    with raises_naming(RowError, f"a-dev.conllu{problem}"):
        LinearProbe(str(tmp_path)).read_examples()


def test_a_text_without_tokens_is_named(predictor):
    with raises_naming(RunError, repr("\u200d")):
        probes.encode_texts(predictor, Example("here", ("\u200d",), 0))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"task": GLUE_TASKS["STS-B"]}, ("probe_sts_b", "STS-B", "numbers")),
        ({"task": QATask()}, ("QATask", "TextTask", "TokenTask")),
        ({"max_train_rows": 0}, ("max_train_rows=0", "None")),
        ({"max_test_rows": -1}, ("max_test_rows=-1",)),
        ({"regularisations": ()}, ("regularisations=()",)),
        ({"regularisations": (1.0, 0.0)}, ("regularisations=(1.0, 0.0)",)),
        ({"folds": 1}, ("folds=1", "at least 2")),
        ({"pooling": "pooled"}, ("pooling='pooled'", "mean, cls")),
    ],
)
def test_a_bad_setting_is_named(fields, words):
    with raises_naming(UserError, *words):
        LinearProbe("data", **fields)


def test_rows_that_cannot_train_a_probe_are_refused(predictor, tmp_path):
    with raises_naming(UserError, "probe.path"):
        LinearProbe().list_files()
    with raises_naming(UserError, tmp_path, "train.tsv", "dev.tsv"):
        LinearProbe(str(tmp_path), TextTask("CoLA", ("sentence",), labels=("0", "1"))).list_files()
    write_treebank(tmp_path / "a-dev.conllu", [[("tan", "NOUN")]] * 4 + [[("ber", "VERB")]])
    write_treebank(tmp_path / "a-test.conllu", [[("tan", "NOUN")]])
    with raises_naming(UserError, "folds=3", "2 training rows"):
        LinearProbe(str(tmp_path), max_train_rows=2).compute(predictor)
    with raises_naming(UserError, "folds=3", "5 training rows", "max_train_rows=400"):
        LinearProbe(str(tmp_path)).compute(predictor)


@pytest.mark.live
def test_a_probe_of_the_exported_run_in_torch_has_the_same_accuracies(folder, predictor, treebank, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    export_run(folder, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()

    def embed_in_torch(sentences, layer):
        vectors = []
        for sentence in sentences:
            row = tokenizer([word for word, _ in sentence], is_split_into_words=True, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**row, output_hidden_states=True).hidden_states[layer][0]
            vectors += [hidden[row.word_ids().index(i)].numpy() for i in range(len(sentence))]
        return np.stack(vectors)

    measure = LinearProbe(str(treebank), regularisations=STRENGTHS)
    rows = [probes.encode_words(predictor, example) for example in measure.read_examples()[1]]
    train, test = draw_sentences(30, seed=1), draw_sentences(20, seed=TEST_SEED, wrong_share=0.7)
    features = probes.compute_features(predictor, rows, None)
    for layer in LAYERS:
        np.testing.assert_allclose(features[layer], embed_in_torch(test, layer), atol=1e-4)
    validated, is_right = probe_plainly(embed_in_torch, train, test)
    scores = measure.compute(predictor).scores
    assert scores["probe_best_layer"] == np.argmax(validated)
    assert [scores[f"probe_layer_{n}"] for n in LAYERS] == [right.mean() for right in is_right]
