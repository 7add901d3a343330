"""`python cli.py ...` runs the command without installing the package."""

from irae.cli import main

if __name__ == "__main__":
    main()
