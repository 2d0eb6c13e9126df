"""`python -m notifier`: see `notifier.process`."""

import sys

from notifier.process import main

sys.exit(main())
