"""Write arithmetic.txt next to this file; the rule itself is `pipelab.data.arithmetic`."""

from pathlib import Path

from pipelab.data import arithmetic

if __name__ == "__main__":
    Path(__file__).with_name("arithmetic.txt").write_bytes(arithmetic())
