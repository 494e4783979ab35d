"""`python -m swarm.cli`, the same as `swarm`."""

import sys

from swarm.cli.main import main

sys.exit(main())
