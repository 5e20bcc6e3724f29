"""What CASA is compared with: rivals from the literature, and controls that say what a score is worth."""
