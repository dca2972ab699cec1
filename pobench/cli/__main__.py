"""`python -m pobench.cli`."""

from pobench.cli.main import main

main()
