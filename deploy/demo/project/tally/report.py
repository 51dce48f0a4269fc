"""From counts to something a person reads."""


def top(counts, limit):
    """Returns the most frequent words with their counts; equal counts stand in alphabetical order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]


def table(rows):
    """Returns one line per word, the counts aligned to the right."""
    if not rows:
        return "nothing counted yet"
    width = max(len(str(number)) for _, number in rows)
    return "\n".join(f"{number:>{width}}  {word}" for word, number in rows)
