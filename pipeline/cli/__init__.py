"""The command line of `mrisynth`."""
