"""`python -m encoders VERB ...`: the command `encoders`."""

import sys

from encoders.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
