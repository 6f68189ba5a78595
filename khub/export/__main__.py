"""`python -m khub.export`: what another process asks this backend to export."""

from khub.export.formats import main

main()
