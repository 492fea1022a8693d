"""`python -m srgym`, the same as the command `srgym`."""

import sys

from srgym.runners.commands.cli import main

sys.exit(main())
