"""The trained models of the repository.

python -m lfvit.results.zoo                            list them
python -m lfvit.results.zoo add RUN_DIR --name NAME    put a training of train.py among them
python -m lfvit.results.zoo cards                      write every NAME.md anew from its NAME.json
"""

import argparse
import sys
from pathlib import Path

from lfvit.errors import LFViTError
from lfvit.models import zoo
from lfvit.results.zoo import card as card_of
from lfvit.utils.atomic_io import read_json
from lfvit.utils.warning_filters import filter_warnings


def main() -> None:
    filter_warnings()
    arguments = _parse()
    try:
        if arguments.what == "add":
            from lfvit.results.zoo.add import add

            options = {k: v for k, v in vars(arguments).items() if k not in ("what", "run_dir")}
            print(f"written: {add(arguments.run_dir, **options)}, with its card beside it")
        elif arguments.what == "cards":
            _write_cards()
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.what is None:
        _list()


def _list() -> None:
    if not zoo.names():
        print(f"{zoo.FOLDER} holds no models; python -m lfvit.results.zoo add RUN_DIR --name NAME")
    for name in zoo.names():
        card = card_of(zoo.PREFIX + name)
        found = card["evaluation"]
        last = found["second"] or found["first"]
        mark = " (default)" if name == zoo.default() else ""
        print(
            f"zoo:{name}{mark}: {card['record']['method']['name']}, {card['data']}, top-1 "
            f"{last['top1']:.2f} %, {last['gmacs']:.3f} GMACs, {card['bytes'] / 1e6:.1f} MB"
        )


def _write_cards() -> None:
    from lfvit.results.zoo.cards import markdown

    for name in zoo.names():
        path = zoo.FOLDER / f"{name}.json"
        path.with_suffix(".md").write_text(markdown(read_json(path)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lfvit.results.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="what")
    add = commands.add_parser("add", help="convert, evaluate and describe a finished training")
    add.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    add.add_argument("--name", required=True)
    add.add_argument("--data-root", metavar="DIR", help="the images, where they have moved")
    add.add_argument("--data", metavar="TEXT", help="the images in words")
    add.add_argument("--remark", default="", metavar="TEXT", help="a sentence for the card")
    add.add_argument("--threshold", type=float, metavar="ETA", help="used where none is given")
    add.add_argument("--default", action="store_true", help="what predict.py uses by itself")
    add.add_argument("--replace", action="store_true", help="an earlier model of this name")
    commands.add_parser("cards", help="write the cards anew")
    return parser.parse_args()


if __name__ == "__main__":
    main()
