"""All families, in the order in which a run looks for one that it exports as."""

from encoders.families import albert, bert, electra, eurobert, modernbert, roberta

FAMILIES = (bert, roberta, albert, electra, modernbert, eurobert)
ARCHITECTURES = {family.ARCHITECTURE.name: family.ARCHITECTURE for family in FAMILIES}
