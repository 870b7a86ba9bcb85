"""`python -m deployments.cli` is `groundstream`."""

from deployments.cli import main

if __name__ == "__main__":
    main()
