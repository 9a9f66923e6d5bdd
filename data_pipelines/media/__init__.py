"""Video and audio files in, small arrays out; worker processes import nothing else."""
