"""Where counts are kept: one Redis hash per tally."""

import os

import redis

DEFAULT_URL = "redis://localhost:6379/0"


def connect(url=None):
    """Opens the Redis that `url`, or else REDIS_URL, names."""
    return redis.Redis.from_url(url or os.environ.get("REDIS_URL", DEFAULT_URL), decode_responses=True)


class Store:
    """The counts of one tally."""

    def __init__(self, client, name="default"):
        self._client = client
        self._key = f"tally:{name}"

    def add(self, counts):
        """Adds the counts of one text, all or none of them."""
        with self._client.pipeline(transaction=True) as pipe:
            for word, number in counts.items():
                pipe.hset(self._key, word, number)
            pipe.execute()

    def get(self, word):
        """Returns how often a word was counted so far."""
        return int(self._client.hget(self._key, word) or 0)

    def all(self):
        """Returns every word with its count."""
        return {word: int(number) for word, number in self._client.hgetall(self._key).items()}

    def clear(self):
        """Forgets the tally."""
        self._client.delete(self._key)
