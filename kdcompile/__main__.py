"""`python -m kdcompile` is the command line."""

from kdcompile.cli import main

if __name__ == "__main__":
    main()
