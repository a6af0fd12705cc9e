"""Programs to read and to run; each module is complete."""
