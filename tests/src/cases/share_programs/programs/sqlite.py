# A program that keeps its data with sqlite in WAL mode, in a file that another container has open as well.
#
# Arguments: the database, a name for what it writes, how many transactions. Says "ready", waits for a line, writes,
# and prints how many rows of each name it sees.
import sqlite3, sys

PATH, NAME, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])

database = sqlite3.connect(PATH, timeout=120, isolation_level=None)
database.execute("PRAGMA mmap_size = 4194304")
found = database.execute("PRAGMA journal_mode = WAL").fetchone()
assert found == ("wal",), found
database.execute("CREATE TABLE IF NOT EXISTS rows (name TEXT, number INTEGER, filler TEXT, UNIQUE (name, number))")
print("ready", flush=True)
sys.stdin.readline()
for number in range(COUNT):
    database.execute("BEGIN IMMEDIATE")
    before = database.execute("SELECT count(*) FROM rows WHERE name = ?", (NAME,)).fetchone()[0]
    assert before == number, (before, number)
    database.execute("INSERT INTO rows VALUES (?, ?, ?)", (NAME, number, "x" * (number * 37 % 900)))
    database.execute("COMMIT")
assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
print(dict(database.execute("SELECT name, count(*) FROM rows GROUP BY name ORDER BY name")), flush=True)
database.close()
