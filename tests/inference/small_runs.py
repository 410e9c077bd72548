"""The sizes of the runs that the tests of predictions share, and the texts that they are asked about."""

from dataclasses import replace

from encoders.families import bert, electra
from tests import texts

TINY = dict(
    vocab_size=400, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=64, init_std=0.3
)
BERT = replace(bert.TINY, **TINY, embedding_size=16)
ELECTRA = replace(electra.BASE, **TINY, embedding_size=16)
LENGTHS = (32, 64)  # two to compile
TEXTS = [" ".join(sentence for sentence in document)[:150] for document in texts.made_up(6, seed=3)]
