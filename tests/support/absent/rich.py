"""Keeps `rich` from the programs that tests start: the fuzzer brings it, users do not have it.

structlog imports all of it where it is installed, which made every start of the command a fifth longer.
"""

raise ModuleNotFoundError("rich is there for the fuzzer alone")
