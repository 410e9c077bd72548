"""The command of a checkout: `python launch.py VERB ...` does what `encoders VERB ...` does once it is installed."""

import sys

from encoders.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
