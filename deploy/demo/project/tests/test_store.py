from tally.words import count


def test_a_word_never_seen_counts_zero(store):
    assert store.get("house") == 0


def test_one_text_is_counted(store):
    store.add(count("a house is a house"))
    assert store.all() == {"a": 2, "house": 2, "is": 1}


def test_counts_of_several_texts_add_up(store):
    store.add(count("the house and the garden"))
    store.add(count("the garden"))
    assert store.get("the") == 3
    assert store.get("garden") == 2
    assert store.get("house") == 1


def test_a_cleared_tally_is_empty(store):
    store.add(count("a house"))
    store.clear()
    assert store.all() == {}
