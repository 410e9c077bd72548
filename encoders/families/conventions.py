"""Conventions of models that were saved before `EncoderConfig` had them."""

from encoders.families import albert, bert, electra, roberta
from encoders.model.config import EncoderConfig, FamilyConventions


def infer_conventions(config: EncoderConfig) -> FamilyConventions:
    """Return the conventions of the family whose parts and positions `config` has."""
    if config.embeddings is electra.ElectraEmbeddings:
        return electra.CONVENTIONS
    if config.position_offset:
        return roberta.CONVENTIONS
    return albert.CONVENTIONS if config.shared_parts else bert.CONVENTIONS
