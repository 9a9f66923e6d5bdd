"""Settings of a run, and how it starts: flags, working directory, data, classifiers."""
