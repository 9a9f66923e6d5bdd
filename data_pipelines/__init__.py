"""Data sets for the experiments: raw files in, arrays keyed by modality name out."""
