"""`python -m hornbook`, where the shell does not know `hornbook`."""

import sys

from hornbook.cli import main

sys.exit(main())
