"""``python -m dispytch`` is the ``dispytch`` command."""

from dispytch.cli import main

if __name__ == "__main__":
    main()
