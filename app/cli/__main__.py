"""Run the command line: `python -m natscope.app.cli`."""

from natscope.app.cli.commands import main

if __name__ == "__main__":
    main()
