"""The seven stages of mrisynth, one file each; they meet only through artifacts."""
