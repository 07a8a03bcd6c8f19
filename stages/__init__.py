"""The seven stages of mrisynth, one folder each; they meet only through artifacts."""
