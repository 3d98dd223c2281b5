"""`python -m kappaspeech` is `kappaspeech`, for launchers that start modules."""

import sys

from kappaspeech.commands import main

sys.exit(main())
