"""The named runs that ship with the package: a file each, with a function `config()` that returns a
`jopd.config.Config`.
"""
