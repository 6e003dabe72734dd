"""What this machine can run, and the way out for each thing that it lacks."""
