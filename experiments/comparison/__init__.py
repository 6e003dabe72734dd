"""What changed between two studies: settings, surroundings, metrics with verdicts, exact counts."""
