"""`python -m pipeline.cli`, as accelerate launches it."""

from pipeline.cli.app import main

if __name__ == "__main__":
    main()
