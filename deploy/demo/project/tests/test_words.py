from tally.words import count, words


def test_words_are_lower_case_and_without_punctuation():
    assert list(words("The house, THE garden!")) == ["the", "house", "the", "garden"]


def test_apostrophes_belong_to_words():
    assert list(words("don’t 'quote' it's")) == ["don't", "quote", "it's"]


def test_digits_are_no_words():
    assert list(words("42 is 6 x 7")) == ["is", "x"]


def test_composed_and_decomposed_letters_are_the_same_word():
    assert count("caf\u00e9 cafe\u0301") == {"caf\u00e9": 2}
