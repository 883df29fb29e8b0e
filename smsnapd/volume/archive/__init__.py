"""Archives as other tools write and read them: tar members, compression, `openssl enc`.

`stream` reads ahead and looks ahead, `openssl` seals and opens, `compress` packs on every core and unpacks
with bounded memory, `members` takes a tarball of any dialect apart, `pax` reads extended headers. Nothing
here knows of a repository.
"""
