"""``python -m dipole``: the command line."""

import sys

from dipole.cli import main

sys.exit(main())
