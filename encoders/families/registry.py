"""All families, in the order in which a run looks for one that it exports as."""

from encoders.families import albert, bert, deberta, electra, modernbert, roberta

FAMILIES = (bert, roberta, albert, electra, modernbert, deberta)
ARCHITECTURES = {family.ARCHITECTURE.name: family.ARCHITECTURE for family in FAMILIES}
