"""What each of the 16 query tokens is to tell of a picture.

A Q-Former's queries may look at what they like, and then tell much the same thing. Here each is given a task in its
English training (`pretrain_qformer.py`), and the language model learns to find each thing in its place (`blends.py`).
"""

QUERIES, WIDTH = 16, 512
# Part of a picture -> the query tokens that tell it. "first" is the only thing, the left or the upper one.
PARTS = {
    "first": slice(0, 5),
    "second": slice(5, 10),
    "first colour": slice(10, 11),
    "second colour": slice(11, 12),
    "ground": slice(12, 13),
    "count": slice(13, 14),
    "arrangement": slice(14, 16),
}
ARRANGEMENTS = ("", "side", "above")
