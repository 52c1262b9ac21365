"""`python -m moe_llava`, and what torchrun and accelerate launch."""

import sys

from moe_llava.cli import main

sys.exit(main())
