"""The camera runner: many cameras, one file that says what to look for and whom to tell.

Started by `groundstream cameras FILE` or `python -m groundstream.cameras FILE`; `docs/cameras.md`
describes the file. Needs the extra `[cameras]`.
"""
