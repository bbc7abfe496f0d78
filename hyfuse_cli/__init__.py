"""The command line: words only. Parses, calls ``pipelines``, shows, and sets the exit status."""
