"""`python -m pipelab` is the command `pipelab`."""

import sys

from pipelab.interrupt import leaving_at_once


def main() -> int:
    """Load the commands, and run the one that is asked for."""
    with leaving_at_once():
        from pipelab import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
