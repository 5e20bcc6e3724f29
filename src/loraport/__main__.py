"""`python -m loraport`, for systems where the console script is not on the path."""

from loraport.cli.start import run

if __name__ == "__main__":
    run()
