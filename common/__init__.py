"""What every room needs: errors, configuration, atomic files. Open `errors.py` first."""
