"""What every part uses: files, seeds, processes, signals and messages."""
