"""Entry point of `python -m ds2deploy`."""

from ds2deploy.cli.app import main

if __name__ == "__main__":
    main()
