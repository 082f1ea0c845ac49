"""One training as a thing on disk: identity, directory, lock, resume, sweeps, processes."""
