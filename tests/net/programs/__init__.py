"""The programs that the network tests start as processes: what a user would write, plus a record of what it saw."""
