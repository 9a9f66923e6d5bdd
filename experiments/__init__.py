"""Experiment binaries: thin, they turn flags into library calls and results into files."""
