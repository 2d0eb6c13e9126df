"""`python -m demo`: see `demo.demo`."""

import sys

from demo.demo import main

sys.exit(main())
