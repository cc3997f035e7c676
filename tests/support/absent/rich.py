"""Hide `rich` from the programs that tests start: the fuzzer depends on it, and users do not have it.

structlog imports all of it if it is installed, which made every start of the command a fifth longer.
"""

raise ModuleNotFoundError("only the fuzzer uses rich")
