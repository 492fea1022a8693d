"""`python -m srgym`, the same as the command `srgym`."""

import sys

from srgym.runners.cli import main

sys.exit(main())
