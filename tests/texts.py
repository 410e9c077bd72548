"""Small English-like texts, always the same for the same arguments: documents of sentences of made-up words."""

from itertools import accumulate, product
from pathlib import Path
from random import Random

WORDS = 300
TOPIC = 12  # words that a document prefers


def words() -> list[str]:
    """`WORDS` distinct made-up words, the short ones first."""
    syllables = [a + b for a, b in product("tsnrlmdkpb", "aeiou")]
    short = [a + b for a, b in zip(syllables, "nrstl" * 10, strict=True)]
    longer = [a + b + c for a, b, c in product(syllables[::7], syllables[::3], ("n", "s", "rt"))]
    return (short + longer)[:WORDS]


def made_up(count: int, seed: int = 0) -> list[list[str]]:
    """Documents of 3 to 12 sentences of 3 to 12 words: few words are frequent, and every document prefers some."""
    rng, known = Random(seed), words()
    weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))

    def sentence(topic: list[str]) -> str:
        size = rng.randint(3, 12)
        said = rng.choices(known, cum_weights=weights, k=size)
        said = [rng.choice(topic) if rng.random() < 0.4 else word for word in said]
        if size > 8:
            said[size // 2] += ","
        return " ".join(said).capitalize() + "."

    def document() -> list[str]:
        topic = rng.sample(known, TOPIC)
        return [sentence(topic) for _ in range(rng.randint(3, 12))]

    return [document() for _ in range(count)]


def write(path, documents: int = 40, seed: int = 0) -> Path:
    """A text file of made-up documents."""
    return written(path, made_up(documents, seed))


def written(path, documents: list[list[str]]) -> Path:
    """A text file: a sentence a line, a blank line between documents."""
    path = Path(path)
    path.write_text("\n\n".join("\n".join(document) for document in documents) + "\n", encoding="utf-8")
    return path
