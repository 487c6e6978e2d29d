"""`python -m pipelab` is the command `pipelab`."""

import sys

from pipelab.cli import main

sys.exit(main())
