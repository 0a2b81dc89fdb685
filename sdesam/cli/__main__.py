"""`python -m sdesam.cli`."""

from sdesam._util.process import leave_current_folder
from sdesam.cli import main

leave_current_folder()
main()
