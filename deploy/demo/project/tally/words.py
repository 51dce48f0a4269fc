"""From text to words."""

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text):
    """Yields the words of a text in lower case; digits and punctuation are no words."""
    for match in _WORD.finditer(unicodedata.normalize("NFC", text)):
        yield match.group().replace("’", "'").casefold()


def count(text):
    """Returns how often each word stands in one text."""
    return Counter(words(text))
