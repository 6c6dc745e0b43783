"""The fault campaign: pcmring under everything that can go wrong, again and again, with every frame accounted for.

`python -m faults --short` in the folder of the tests; docs/reliability.md has what it shows.
"""
