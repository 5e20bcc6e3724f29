"""How stored bytes become weights, one codec a file; `registry` knows them all."""
