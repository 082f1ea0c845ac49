"""``python -m lfvit COMMAND``: the same as ``lfvit COMMAND``."""

from lfvit.cli import main

if __name__ == "__main__":
    main()
