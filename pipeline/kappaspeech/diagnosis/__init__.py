"""Faults of a machine or a configuration, found before a training meets them: `kappaspeech doctor`."""
