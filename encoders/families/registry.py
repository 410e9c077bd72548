"""All families, in the order in which a run looks for one that it exports as."""

from encoders.families import albert, bert, deberta, electra, esm, eurobert, modernbert, neobert, roberta

FAMILIES = (bert, roberta, albert, electra, modernbert, deberta, eurobert, neobert, esm)
ARCHITECTURES = {family.ARCHITECTURE.name: family.ARCHITECTURE for family in FAMILIES}
