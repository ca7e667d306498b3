"""``pplleak`` and ``python -m pplleak``: Ctrl-C is answered in one line even while torch is being imported."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from pplleak.cli import main as run

        run()
    except KeyboardInterrupt:
        print("pplleak: interrupted before anything could be kept", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
