"""`python -m klassify COMMAND ...`: the same as `klassify COMMAND ...`."""

import sys

from klassify.cli import main

if __name__ == "__main__":
    sys.exit(main())
