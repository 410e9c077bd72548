"""Documents of a corpus, read range by range as the preparation of a store reads them."""

from encoders.text.corpus import RANGE_BYTES, make_sentence_splitter, make_sources


def read_corpus_documents(corpus, sentence_splitting="split", language="en", text_field=None, range_bytes=RANGE_BYTES):
    """Yield each document of `corpus` that has text as a list of sentences."""
    split = make_sentence_splitter(sentence_splitting, language)
    for source in make_sources(corpus, text_field):
        for byte_range in source.split_ranges(range_bytes):
            for document in source.read_documents(byte_range):
                if sentences := [sentence for line in document for sentence in split(line)]:
                    yield sentences
