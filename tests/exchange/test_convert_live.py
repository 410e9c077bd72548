"""Against torch and transformers themselves: the same models in both, each read and written by the other.

These need the `torch` extra, and run with `python -m pytest -m live`.
"""

import json
import logging
import shutil

import numpy as np
import pytest

import launch
from encoders.exchange.convert import export_run, import_checkpoint
from encoders.exchange.tokenizer_files import read_tokenizer
from encoders.families.registry import ARCHITECTURES
from encoders.inference.predictor import load_predictor
from encoders.model.config import EncoderConfig
from encoders.run.run import Run
from tests import texts
from tests.exchange import references
from tests.exchange.outputs import furthest, ours
from tests.exchange.references import CASES, HOME
from tests.test_readme_commands import TWO_PHASES

pytestmark = pytest.mark.live
# float32 on both sides; sums in another order.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def transformers():
    found = pytest.importorskip("transformers")
    found.utils.logging.disable_progress_bar()
    return found


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_every_logit_equal_those_of_transformers(name, transformers, tmp_path):
    references.make(name, tmp_path / "theirs", seed=1)
    vocabulary = HOME / "vocabularies" / CASES[name].family
    import_checkpoint(tmp_path / "theirs", tmp_path / "run", tokenizer_files=vocabulary)
    with np.load(tmp_path / "theirs" / "expected.npz") as expected:
        assert max(furthest(ours(tmp_path / "run", expected), expected).values()) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_is_exported_whole_and_computes_the_same(name, transformers, tmp_path, caplog):
    case = CASES[name]
    import_checkpoint(HOME / name, tmp_path / "run", tokenizer_files=HOME / "vocabularies" / case.family)
    with caplog.at_level(logging.WARNING):
        export_run(tmp_path / "run", tmp_path / "out")
        references.get_class(case.family, case.kind)  # its registration
        kind = getattr(transformers, "AutoModel" + case.kind.removeprefix("Model"))
        model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is references.get_class(case.family, case.kind)
    assert not any(info.values()), info
    assert not caplog.records
    with np.load(HOME / name / "expected.npz") as stored:
        expected = dict(stored)
    inputs = {part: expected[part] for part in ("ids", "mask", "types")}
    mine = inputs | ours(tmp_path / "run", expected)
    generator = mine.pop("tokens") if case.generator else None
    assert max(furthest(references.outputs_of(case, model.eval(), inputs), mine).values()) < TOLERANCE
    if case.generator:
        model, info = transformers.AutoModelForMaskedLM.from_pretrained(
            tmp_path / "out" / "generator", output_loading_info=True
        )
        assert not any(info.values()), info
        theirs = references.outputs_of(references.Case("electra", "ForMaskedLM"), model.eval(), inputs)
        assert furthest(theirs, inputs | {"tokens": generator})["tokens"] < TOLERANCE


def test_a_pooler_that_the_class_has_not_is_left_out(transformers, tmp_path, caplog):
    """Published masked-token models of RoBERTa bring one."""
    run = tmp_path / "run"
    case = CASES["roberta-masked"]
    theirs = references.model_of(case, seed=2)
    theirs.roberta = references.model_of(references.Case("roberta", "Model", case.config), seed=2)  # with a pooler
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", run, tokenizer_files=HOME / "vocabularies" / "roberta")
    assert "pooler" in Run.open(run).load_params()[1]
    with caplog.at_level(logging.WARNING):
        export_run(run, tmp_path / "out")
        _, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and not caplog.records


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}])
@pytest.mark.parametrize("saved", [False, True])
def test_a_space_before_a_text_is_there_where_the_configuration_says_so(settings, saved, transformers, tmp_path):
    folder = shutil.copytree(HOME / "vocabularies" / "roberta", tmp_path / "theirs")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"} | settings))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    if saved:
        theirs.save_pretrained(tmp_path / "saved")
    import_checkpoint(
        HOME / "roberta-encoder", tmp_path / "run", tokenizer_files=tmp_path / "saved" if saved else folder
    )
    export_run(tmp_path / "run", tmp_path / "out")
    again, mine = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), Run.open(tmp_path / "run").tokenizer
    for text in references.TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert again(text, add_special_tokens=False)["input_ids"] == ids == mine.encode(text)
        assert again(text, text)["input_ids"] == theirs(text, text)["input_ids"]


@pytest.mark.parametrize("added_tokens", [{}, {"[MASK]": 47}])
def test_debertas_pieces_give_the_ids_of_transformers_with_and_without_a_file_that_names_the_mask(
    added_tokens, transformers, tmp_path
):
    folder = shutil.copytree(HOME / "vocabularies" / "deberta-v2", tmp_path / "theirs")
    if added_tokens:
        (folder / "added_tokens.json").write_text(json.dumps(added_tokens))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "saved")
    for text in (*references.TEXTS, "  tan\n\nber \t e\u0301 ① ", "tan [MASK]  [MASK]ber", "tan[CLS]ber [UNK]"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert read_tokenizer(folder).encode(text) == read_tokenizer(tmp_path / "saved").encode(text) == ids


@pytest.mark.parametrize("family", references.VOCABULARY)
def test_the_exported_tokenizer_gives_the_same_ids(family, transformers, tmp_path):
    import_checkpoint(HOME / f"{family}-encoder", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / family)
    export_run(tmp_path / "run", tmp_path / "out")
    theirs, mine = transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), Run.open(tmp_path / "run")
    for text in references.TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == mine.tokenizer.encode(text)
    assert theirs.mask_token_id == mine.vocab.mask_id and theirs.pad_token_id == mine.vocab.pad_id
    whole = theirs("tan ber")["input_ids"]
    assert (whole[0], whole[-1]) == (mine.vocab.cls_id, mine.vocab.sep_id)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of all four families, trained here for a few steps with vocabularies of their own."""
    home = tmp_path_factory.mktemp("trained")
    texts.write(home / "text.txt", documents=200)
    settings = [f"data.corpus={home / 'text.txt'}", f"data.store_dir={home / 'stores'}", *TWO_PHASES]
    settings += ["model.vocab_size=300", "data.tokenizer.vocab_size=300"]  # no row of the table without a token
    settings.append("model.row_features=none")  # rotary positions of ELECTRA cannot be exported
    assert launch.main(["train", "quickstart", "--runs", str(home / "runs"), "--set", *settings]) == 0
    return home / "runs"


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_what_is_trained_here_reads_and_fills_in_the_same_there(family, trained, transformers, tmp_path):
    run = Run.open(trained / f"quickstart-{family}")
    export_run(run.folder, tmp_path / "out")
    generator = tmp_path / "out" / "generator"
    pipe = transformers.pipeline("fill-mask", str(generator if generator.exists() else tmp_path / "out"), top_k=5)
    for text in (*references.TEXTS, *(line for document in texts.made_up(20, seed=1) for line in document)):
        assert pipe.tokenizer(text, add_special_tokens=False)["input_ids"] == run.tokenizer.encode(text)
    for text in ("tan [MASK] mut [MASK].", "[MASK] tan  [MASK] "):
        said = pipe(text.replace("[MASK]", pipe.tokenizer.mask_token))
        (filled,) = load_predictor(run.folder).fill_masks([text])
        for theirs, here in zip(said, filled, strict=True):
            assert [run.tokenizer.id_to_token(each["token"]) for each in theirs] == [word for word, _ in here]
            assert [each["score"] for each in theirs] == pytest.approx([score for _, score in here], rel=1e-4)


@pytest.mark.parametrize("family", references.VOCABULARY)
def test_sentence_transformers_loads_an_exported_encoder_without_a_warning(family, transformers, tmp_path, caplog):
    library = pytest.importorskip("sentence_transformers")
    references.get_class(family, "Config")  # its registration
    import_checkpoint(HOME / f"{family}-encoder", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / family)
    export_run(tmp_path / "run", tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert not caplog.records
    vectors = model.encode(["tan ber", "mut"])
    assert vectors.shape == (2, 12) and np.isfinite(vectors).all()


# DeBERTa's means absolute positions, which are refused.
@pytest.mark.parametrize("family", [name for name in ARCHITECTURES if name != "deberta-v2"])
def test_an_empty_configuration_means_what_it_means_to_transformers(family, transformers):
    architecture = ARCHITECTURES[family]
    necessary = references.NECESSARY.get(family, {})
    config = references.get_class(family, "Config")(**necessary)
    mine, theirs = (
        architecture.read_encoder_config(necessary),
        architecture.read_encoder_config(json.loads(json.dumps(config.to_dict()))),
    )
    assert isinstance(mine, EncoderConfig) and mine == theirs


def test_what_an_export_repeats_is_left_out(transformers, tmp_path):
    """Tied tensors are written once, as transformers does itself."""
    import_checkpoint(HOME / "bert-pretraining", tmp_path / "run", tokenizer_files=HOME / "vocabularies" / "bert")
    export_run(tmp_path / "run", tmp_path / "out")
    model = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
