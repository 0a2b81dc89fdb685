"""`python -m sdesam` is the command `sdesam`."""

from sdesam._util.process import leave_current_folder

leave_current_folder()  # before click is looked for

from sdesam.cli import main  # noqa: E402

main()
