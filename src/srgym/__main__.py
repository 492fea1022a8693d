"""`python -m srgym`, the same as the command `srgym`: the folder that it is called in is on no path of Python's."""

import sys
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd():
    del sys.path[0]

from srgym.runners.commands.cli import main

sys.exit(main())
