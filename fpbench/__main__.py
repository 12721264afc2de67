"""``python -m fpbench``."""

import sys

from fpbench.cli import main

sys.exit(main())
