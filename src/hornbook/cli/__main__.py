"""`python -m hornbook.cli`."""

import sys

from hornbook.cli import main

sys.exit(main())
