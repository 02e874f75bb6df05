"""A temporary file that was deleted at once, as tempfile and others do."""

from station import PLACE, dumped

file = (PLACE / "deleted").open("w+")
file.write("content")
file.flush()
(PLACE / "deleted").unlink()
dumped()
file.seek(0)
assert file.read() == "content"
file.write("more")
assert not (PLACE / "deleted").exists()
