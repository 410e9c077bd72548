"""What each family's fine-tuning has of its own: heads, separators, and how it says that there is no answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders.families.electra import ElectraEmbeddings
from encoders.model.config import EncoderConfig
from encoders.tasks.question_answering import ConditionedSpanPrediction, QAObjective, SpanPrediction, SpanWithClassifier


@dataclass(frozen=True)
class Conventions:
    """`head` of a classification, separators `between` two texts, and the objective for questions that may have no
    answer."""

    name: str
    classifier_head: Literal["pooled", "linear", "tanh"]
    num_separators: int
    unanswerable_objective: QAObjective


BERT = Conventions("bert", "pooled", 1, SpanPrediction())
ROBERTA = Conventions("roberta", "tanh", 2, SpanWithClassifier())
ALBERT = Conventions("albert", "pooled", 1, ConditionedSpanPrediction())
ELECTRA = Conventions(
    "electra", "linear", 1, ConditionedSpanPrediction(512, "gelu", use_layer_norm=False, head_dropout=0.0, beam_size=20)
)


def detect_conventions(config: EncoderConfig) -> Conventions:
    """Those of the family that has the parts and positions of `model`: ELECTRA's embeddings, RoBERTa's offset
    positions, ALBERT's sharing, and BERT's without any of these."""
    if config.embeddings is ElectraEmbeddings:
        return ELECTRA
    if config.position_offset:
        return ROBERTA
    return ALBERT if config.shared_parts else BERT
