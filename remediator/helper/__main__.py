"""`python -m remediator.helper`."""

import sys

from remediator.helper.command import main

sys.exit(main())
