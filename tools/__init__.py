"""Scripts for the people who work on this repository; nothing here is installed. Open `house.py` first."""
