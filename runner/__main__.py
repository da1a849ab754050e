"""`python -m runner` is `spottmee-worker`."""

import sys

from runner.cli import main

sys.exit(main())
