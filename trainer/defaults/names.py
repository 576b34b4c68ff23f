"""Names that columns have in published data sets, and what they mean there.

It refuses to know files.
"""

PAIRS = (
    ("question", "passage"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_A", "sentence_B"),
    ("#1 String", "#2 String"),
    ("query", "passage"),
    ("query", "document"),
)
"""Pairs of texts, the first one first."""
SINGLES = ("text", "sentence", "content", "review", "utterance", "message", "tweet", "comment", "document", "body")
LABELS = ("label_text", "label_name", "label", "gold_label", "labels", "is_duplicate", "Quality")
WEAK_LABELS = ("class", "category", "intent", "sentiment", "topic", "target", "answer", "emotion", "y")
"""Names that mean a label where no better one is there, if only one of them is."""
WORDS = ("tokens", "words", "text")
TAGS = ("tags", "ner_tags", "ner", "labels", "label")
PREMISES = ("premise", "question", "context", "ctx", *SINGLES)
"""What choices are made for."""
IDS = (
    "index",
    "idx",
    "id",
    "ind",
    "guid",
    "uid",
    "uuid",
    "pairID",
    "qid1",
    "qid2",
    "#1 ID",
    "#2 ID",
    "title",
    "url",
    "genre",
    "split",
    "source",
)
"""Columns that say where a row is from."""
HEADER = {name for pair in PAIRS for name in pair} | {*SINGLES, *LABELS, *WEAK_LABELS, *IDS}
"""A first line with one of these is a header."""
