"""Other people's programs, run as they are in processes of their own: Topaz and RELION.

Nothing of them is imported. `topaz.find` and `relion.find` say where a program is, or nothing.
"""
