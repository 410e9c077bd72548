"""Small files of every kind of task: rows whose label shows in one word, so that they can be learned."""

import json
from pathlib import Path
from random import Random

from encoders.text.tokenization import TokenizerSpec
from encoders.text.tokenization import train_tokenizer as train_vocabulary
from tests.texts import made_up, words

GOOD, BAD = "good", "bad"


def vocabulary(folder: Path, kind: str = "wordpiece", size: int = 400) -> str:
    """The path of a vocabulary that knows the words of all rows."""
    path = folder / f"{kind}.json"
    documents = [*made_up(40), [f"{GOOD} {BAD} {mark} here" for mark in ("what", "who", "where")] * 9]
    train_vocabulary(TokenizerSpec(kind=kind, vocab_size=size), documents).save(path)
    return str(path)


def sentence(rng: Random, *marks: str) -> str:
    said = [*rng.choices(words()[:60], k=rng.randint(3, 9)), *marks]
    rng.shuffle(said)
    return " ".join(said)


def classes(folder: Path, rows: int = 96, dev: int = 40, seed: int = 0) -> str:
    """SST-2's layout: label 1 where the sentence has a good word, 0 where it has a bad one."""
    rng = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("dev", dev), ("test", 7)):
        labels = [rng.randrange(2) for _ in range(count)]
        texts = [sentence(rng, (BAD, GOOD)[label]) for label in labels]
        lines = [("index", "sentence"), *enumerate(texts)]
        if name != "test":
            lines = [("sentence", "label"), *zip(texts, labels, strict=True)]
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return str(folder)


def numbers(folder: Path, rows: int = 64, dev: int = 30) -> str:
    """STS-B's layout: 5 where the second sentence repeats the first, else 0."""
    rng = Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("dev", dev)):
        lines = ["index\tsentence1\tsentence2\tscore"]
        for i in range(count):
            first, alike = sentence(rng, "here"), rng.randrange(2)
            lines.append(f"{i}\t{first}\t{first if alike else sentence(rng, BAD)}\t{5.0 * alike:.3f}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def text_pairs(folder: Path, rows: int = 24) -> str:
    """Pairs of a sentence and its words in another order, as JSON lines, and the second texts as lines."""
    rng = Random(4)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        anchors = [sentence(rng) for _ in range(rows)]
        pairs = [{"anchor": text, "positive": " ".join(text.split()[::-1])} for text in anchors]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        (folder / "corpus.txt").write_text("".join(pair["positive"] + "\n" for pair in pairs), encoding="utf-8")
    return str(folder)


def squad(folder: Path, questions: int = 24, unanswerable: bool = False) -> str:
    """SQuAD's layout: the answer is the word after "good" in a text of some sentences; without it there is none."""
    rng = Random(2)
    folder.mkdir(parents=True, exist_ok=True)
    version = "2.0" if unanswerable else "1.1"
    for name in ("train", "dev"):
        paragraphs = []
        for number in range(questions):
            before, after, answer = sentence(rng), sentence(rng), rng.choice(words()[:60])
            missing = unanswerable and number % 3 == 0
            context = f"{before} {after}" if missing else f"{before} {GOOD} {answer} {after}"
            row = {"id": f"{name}-{number}", "question": "what here", "answers": [], "is_impossible": missing}
            if not missing:
                row["answers"] = [{"text": answer, "answer_start": len(before) + len(GOOD) + 2}]
            paragraphs.append({"context": context, "qas": [row]})
        whole = {"version": version, "data": [{"title": "made up", "paragraphs": paragraphs}]}
        (folder / f"{name}-v{version}.json").write_text(json.dumps(whole), encoding="utf-8")
    return str(folder)


def tags(folder: Path, rows: int = 48) -> str:
    """CoNLL's layout: "good" is a person, "bad" a place."""
    rng = Random(3)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        lines = []
        for _ in range(rows):
            for word in sentence(rng).split():
                lines.append(f"{word} x O")
            kind, mark = rng.choice([("PER", GOOD), ("LOC", BAD)])
            lines += [f"{mark} x B-{kind}", "here x O", ""]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def choices(folder: Path, rows: int = 40) -> str:
    """Rows of a text, a question and four options, of which one is good."""
    rng = Random(4)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        lines = []
        for _ in range(rows):
            right = rng.randrange(4)
            options = [sentence(rng, GOOD if i == right else BAD) for i in range(4)]
            row = {"article": sentence(rng), "question": "what here _", "options": options, "answer": "ABCD"[right]}
            lines.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def write_measured_data(home: Path) -> None:
    """Write what `measure` reads: pairs of a sentence and its words turned round, tagged words, judged pairs.

    All sentences have six words, so that few shapes are compiled.
    """
    rng = Random(4)
    draw_words = lambda mark: [*rng.choices(words()[:20], k=5), mark]
    drawn = [draw_words("here") for _ in range(12)]
    rows = [{"good": " ".join(row), "bad": " ".join(row[::-1]), "uid": f"turned_{i % 2}"} for i, row in
            enumerate(drawn)]  # fmt: skip
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (home / "ud").mkdir()
    for split in ("dev", "test"):
        blocks = []
        for _ in range(12):
            tagged = enumerate(draw_words(GOOD), 1)
            lines = [f"{i}\t{word}\t_\t{'ADJ' if word == GOOD else 'NOUN'}\t_\t_\t0\t_\t_\t_" for i, word in tagged]
            blocks.append("\n".join(lines) + "\n\n")
        (home / "ud" / f"en-ud-{split}.conllu").write_text("".join(blocks), encoding="utf-8")
    lines = ["index\tsentence1\tsentence2\tscore"]
    for i, row in enumerate(drawn):
        lines.append(f"{i}\t{' '.join(row)}\t{' '.join(drawn[i - 1] if i % 2 else row[::-1])}\t{5.0 * (i % 2):.1f}")
    (home / "sts" / "STS-B").mkdir(parents=True)
    (home / "sts" / "STS-B" / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
