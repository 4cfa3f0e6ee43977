"""The subcommands of `namm`, one file each."""
