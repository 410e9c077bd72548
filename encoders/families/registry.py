"""All families, in the order in which a run looks for one that it exports as."""

from encoders.families import albert, bert, electra, esm, eurobert, modernbert, neobert, roberta

FAMILIES = (bert, roberta, albert, electra, modernbert, eurobert, neobert, esm)
ARCHITECTURES = {family.ARCHITECTURE.name: family.ARCHITECTURE for family in FAMILIES}
