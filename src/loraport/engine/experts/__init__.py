"""Both experts of Wan2.2 in one job, and which expert a target was distilled from."""
