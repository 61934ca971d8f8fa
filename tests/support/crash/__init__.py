"""Writers that are killed, what they were told, and power failures."""
