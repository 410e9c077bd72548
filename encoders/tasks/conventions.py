"""What each family's fine-tuning has of its own: heads, separators, and how it says that there is no answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import Model
from encoders.tasks.question_answering import ConditionedSpans, JudgedSpans, Questions, Spans


@dataclass(frozen=True)
class Conventions:
    """`head` of a classification, separators `between` two texts, and the objective for questions that may have no
    answer."""

    name: str
    head: Literal["pooled", "linear", "tanh"]
    between: int
    unanswerable: Questions


BERT = Conventions("bert", "pooled", 1, Spans())
ROBERTA = Conventions("roberta", "tanh", 2, JudgedSpans())
ALBERT = Conventions("albert", "pooled", 1, ConditionedSpans())
ELECTRA = Conventions("electra", "linear", 1, ConditionedSpans(512, "gelu", norm=False, dropout=0.0, beam=20))


def conventions(model: Model) -> Conventions:
    """Those of the family that has the parts and positions of `model`: ELECTRA's embeddings, RoBERTa's offset
    positions, ALBERT's sharing, and BERT's without any of these."""
    if model.embed is ElectraEmbeddings:
        return ELECTRA
    if model.position_offset:
        return ROBERTA
    return ALBERT if model.share else BERT
