"""The command line: add texts, show the most frequent words, start over."""

import argparse
import pathlib

from tally.report import table, top
from tally.store import Store, connect
from tally.words import count


def arguments():
    parser = argparse.ArgumentParser(prog="tally", description=__doc__)
    parser.add_argument("--name", default="default", help="which tally")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="count the words of files")
    add.add_argument("files", nargs="+", type=pathlib.Path)
    most = commands.add_parser("top", help="show the most frequent words")
    most.add_argument("limit", nargs="?", type=int, default=10)
    commands.add_parser("clear", help="start over")
    return parser.parse_args()


def main():
    chosen = arguments()
    store = Store(connect(), chosen.name)
    if chosen.command == "add":
        for file in chosen.files:
            store.add(count(file.read_text(encoding="utf-8")))
    elif chosen.command == "top":
        print(table(top(store.all(), chosen.limit)))
    else:
        store.clear()


if __name__ == "__main__":
    main()
