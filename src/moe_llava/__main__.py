"""`python -m moe_llava` is `moe-llava`; launchers start it by this name."""

import sys

from moe_llava.cli import main

if __name__ == "__main__":
    sys.exit(main())
