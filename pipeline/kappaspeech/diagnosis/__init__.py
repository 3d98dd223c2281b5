"""What is wrong with a machine or a configuration, before a training finds out: `kappaspeech doctor`."""
