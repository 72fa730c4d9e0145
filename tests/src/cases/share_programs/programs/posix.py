# The rules of POSIX, checked one by one in a directory.
#
# Argument: the directory; each check gets one of its own in it, and leaves it for the host to look at. Prints a line
# for each check, and ends with 1 when one has failed.
import posix_files, posix_names, posix_owners
from posix_harness import main

main()
