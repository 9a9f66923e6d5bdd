"""What classifiers of any framework predicted, in files: read, joined, fused, written."""
