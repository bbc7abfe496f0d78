"""What is there on this machine and in this folder, and what to do next: for ``hyfuse``, ``hyfuse doctor`` and ``--dry-run``."""
