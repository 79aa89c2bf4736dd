"""`python -m paramctl`."""

import sys

from paramctl.cli import main

sys.exit(main())
