"""`python -m pipeline` is `kappaspeech`, for launchers that start modules."""

import sys

from pipeline.commands import main

sys.exit(main())
