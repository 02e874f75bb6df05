"""`python -m kybernate.cli`."""

import sys

from kybernate.cli.main import main

sys.exit(main())
