"""Sentence-pair tasks: next-sentence prediction (BERT §3.1) and sentence-order prediction (ALBERT §3.1)."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class NextSentencePrediction:
    """Next-sentence prediction; label 1 if the second text is random, as in the released code."""

    metric_prefix: ClassVar[str] = "nsp"
    label_field: ClassVar[str] = "next_sentence"


@dataclass(frozen=True)
class SentenceOrderPrediction:
    """Sentence-order prediction for two consecutive segments; label 1 if swapped, as in the released code."""

    metric_prefix: ClassVar[str] = "sop"
    label_field: ClassVar[str] = "sentence_order"
