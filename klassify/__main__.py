"""`python -m klassify COMMAND ...`: the same as `klassify COMMAND ...`."""

from __future__ import annotations

import sys

from klassify.cli import main

if __name__ == "__main__":
    sys.exit(main())
