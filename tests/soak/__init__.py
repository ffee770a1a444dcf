"""Long runs on six real sites: too long for every run of the suite (docs/contributing.md)."""
