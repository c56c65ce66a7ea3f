"""``python -m fastrnn`` does what ``fastrnn`` does."""

from fastrnn.cli import main

if __name__ == "__main__":
    main()
