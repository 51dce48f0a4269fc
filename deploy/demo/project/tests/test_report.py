from tally.report import table, top


def test_the_most_frequent_word_comes_first():
    assert top({"house": 1, "the": 3, "garden": 2}, 2) == [("the", 3), ("garden", 2)]


def test_equal_counts_stand_in_alphabetical_order():
    assert top({"b": 1, "c": 1, "a": 1}, 3) == [("a", 1), ("b", 1), ("c", 1)]


def test_counts_are_aligned():
    assert table([("the", 12), ("house", 7)]) == "12  the\n 7  house"


def test_an_empty_tally_says_so():
    assert table([]) == "nothing counted yet"
