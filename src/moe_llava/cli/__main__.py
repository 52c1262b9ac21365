"""`python -m moe_llava.cli`, as torchrun starts it."""

import sys

from moe_llava.cli import main

sys.exit(main())
