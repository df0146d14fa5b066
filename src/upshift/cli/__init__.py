"""The command line: parse, call a workflow, print, and set the exit code.

Data go to stdout, everything else to stderr. Exit code 0 is success, 1 a failure, 2 bad input, 130 an interruption.
Workflows are imported inside the commands, so that `--help` does not wait for torch.
"""

from upshift.cli.command_line import app as app
from upshift.cli.command_line import main as main
